-- Takes up to n jobs of a pair from the queues of its batches and leases them to a worker. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  length of a lease in ms   ARGV[5]  number of the first lease   ARGV[6]  n
--   ARGV[7]  how many of these n would only wait in the worker   ARGV[8]  how many jobs it has already
--   ARGV[9]  pair, as it stands in the names of queues
--   ARGV[10]  behind   ARGV[11]  meanwhile, see fleet/pace.lua; 0 if unknown
--   ARGV[12]  tokens of the worker's mean job   ARGV[13]  ms that one of its rows takes for that
--   ARGV[14]  since   ARGV[15]  longest, of what the worker's last claim returned; 0 at first
-- Returns {claimed, 1 if jobs were passed to faster workers, since, longest}. Claimed is a list of {job, data, token,
-- batch, custom_id, ms in the queue, 1 if it must run alone, keep}. Since is the Redis TIME in ms since when this worker's
-- claims pass jobs, and longest the size, beside the mean, of the longest that was there then; as text, 0 if there is none.
-- Entries of a queue whose job is not open, or already leased, are dropped. `rq suspend` stops claiming.
--
-- Users take turns, and the batches of a user among themselves (virtual clock). What takes turns is a flow: all batches of
-- one user and one priority. The next job is that of the flow whose next job is due first, and then the one after it comes
-- due later by what the priority costs. So users share alike, however many batches each has; a high priority gets 16
-- jobs for each of a normal one, and a low one is served too. Inside a flow, batches share alike. A user's flows are
-- parked while as many jobs of that user run as the limit allows. A claim reads the flows and batches that it takes from,
-- however many there are.
--
-- Jobs that would wait are taken from full queues only, a quarter of what is there, and only as long as the fleet needs
-- more time for the queue than a row here for its job: so a row that ends is filled without a trip to Redis, and yet the
-- last jobs of a batch go to the workers that have a row free.
--
-- Near the end of the queue a slow worker passes jobs to faster ones: those that it would end later than the fleet could
-- empty the queue and a usual row run the job after that. The longer the job, the earlier. By the time that this worker
-- would have run the longest of them the queue is empty, if faster ones empty it. If it is not, whatever keeps them away,
-- the worker passes nothing that was there all the time, and fills its rows; what came later has its own time.
--
-- Jobs on their last lease have a list of their own. A worker takes one when it holds nothing and finds nothing else, and
-- the others go on meanwhile. So that they do not wait for ever under a load that never ends: once the first has waited
-- for PATIENCE leases, one worker claims nothing more until it is empty, and then takes it; no more than one such drain
-- in PATIENCE leases.

local worker, lease, number, wanted = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ahead, held, pair = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local behind, meanwhile, mean, takes = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local since, longest = tonumber(ARGV[14]), tonumber(ARGV[15])
local TURNS, PARKED, ALONE, DRAINS =
  of_pair('turns', pair), of_pair('parked', pair), of_pair('alone', pair), of_pair('drains', pair)
local MOST_LOOKED_AT, MOST_ALONE, MOST_UNPARKED, MOST_PASSED, PATIENCE = 1000, 100, 16, 4, 5
if redis.call('EXISTS', 'rq:suspended') == 1 then return { {}, 0, '0', '0' } end

-- A batch's queue of this pair.
local function queue_of(batch)
  return 'draftmill.' .. WIRE .. '.' .. pair .. ':' .. batch
end

-- How many more jobs of a user may run.
local allowances = {}
local function allowance(user)
  if not allowances[user] then
    local cap = redis.call('HGET', 'draftmill:limits', user) or redis.call('HGET', 'draftmill:limits', '*')
    allowances[user] = cap and tonumber(cap) - redis.call('SCARD', 'draftmill:running:user:' .. user) or math.huge
  end
  return allowances[user]
end

local function user_of(flow)
  return string.match(flow, '^%a+:(.*)$') or ''
end

-- A job that ends unparks the flows of its user; this is for limits that were raised, a few at a time.
for _, flow in ipairs(redis.call('ZRANDMEMBER', PARKED, MOST_UNPARKED)) do
  if allowance(user_of(flow)) > 0 then unpark(pair, flow, user_of(flow)) end
end

-- Jobs that are queued, counted as far as it matters; in more batches than a claim looks at there are enough.
local function count_queued(enough)
  local there, looks = 0, 0
  for _, turns in ipairs({ TURNS, PARKED }) do
    for _, flow in ipairs(redis.call('ZRANGE', turns, 0, MOST_LOOKED_AT)) do
      for _, batch in ipairs(redis.call('ZRANGE', TURNS .. ':' .. flow, 0, math.min(enough, MOST_LOOKED_AT))) do
        there = there + redis.call('LLEN', 'rq:queue:' .. queue_of(batch))
        looks = looks + 1
        if looks >= MOST_LOOKED_AT then return enough end
        if there >= enough then return there end
      end
    end
  end
  return there
end
local free = wanted - ahead
if ahead > 0 then
  local there = count_queued(4 * ahead + math.ceil(meanwhile))
  wanted = free + math.max(0, math.min(ahead, math.floor(there / 4), math.floor(there - meanwhile)))
end

-- Flows are read one by one, in the order in which they are due, and stay in the turns as they were until the end: those
-- that were read are the first of them. Of two that are due at one time the one that was read first is first.
local flows, read, looked_at, clock = {}, 0, 0, 0
local function read_flow()
  local found = redis.call('ZRANGE', TURNS, read, read, 'WITHSCORES')
  local name, due = found[1], tonumber(found[2])
  if not name then return nil end
  read = read + 1
  local cost = COST[string.match(name, '^(%a+):') or ''] or COST.low
  return { name = name, key = TURNS .. ':' .. name, user = user_of(name), cost = cost, due = due, was = due }
end

local function leave(flow)
  flow.left, read = true, read - 1
end

local ahead_of_all = read_flow()
local function next_flow()
  while looked_at < MOST_LOOKED_AT do
    local best
    for _, flow in ipairs(flows) do
      if not (flow.left or flow.passed) and (not best or flow.due < best.due) then best = flow end
    end
    if ahead_of_all and (not best or ahead_of_all.due < best.due) then
      best = ahead_of_all
      flows[#flows + 1] = best
      ahead_of_all = read_flow()
    end
    if not best or allowance(best.user) > 0 then
      if best then clock = best.due end
      return best
    end
    looked_at = looked_at + 1
    park(pair, best.name, best.user, best.due)
    leave(best)
  end
end

-- Since when the next job of a batch waits, as the batch has it.
local SINCE, noted = 'waiting_since ' .. pair, {}

-- The queue of the flow's next batch, that batch, and when it was due; nothing once the flow has no more.
local function next_batch(flow)
  while looked_at < MOST_LOOKED_AT do
    looked_at = looked_at + 1
    local batch, due = first_of(flow.key)
    if not batch then
      redis.call('ZREM', TURNS, flow.name)
      leave(flow)
      return nil
    end
    local about = redis.call('HMGET', 'draftmill:batch:' .. batch, 'priority', 'user', 'cancelled_at', 'paused_at', SINCE)
    local stays = about[1] and not about[3] and not about[4] and about[1] .. ':' .. about[2] == flow.name
    if stays then
      is_cancelled[batch], noted[batch] = false, about[5]
      return queue_of(batch), batch, due
    end
    redis.call('ZREM', flow.key, batch) -- it is gone, cancelled, paused, or of another priority by now
  end
end

local claimed, is_claimed = {}, {}
local function claim(job, alone)
  local token = worker .. '.' .. job.generation .. '.' .. number
  number = number + 1
  if job.queue ~= job.origin then redis.call('HSET', job.key, 'origin', job.queue) end
  redis.call('HSET', job.key, 'status', 'started', 'started_at', AT, 'worker_name', worker, 'draftmill_lease', token,
    'draftmill_lease_ms', lease)
  gather('ZADD', LEASES, NOW + lease, job.id)
  gather('ZADD', 'rq:wip:' .. job.queue, math.floor(NOW / 1000) + TEN_YEARS, job.id .. ':' .. token)
  gather('SADD', 'draftmill:running:batch:' .. job.batch, job.id)
  gather('SADD', 'draftmill:running:user:' .. job.user, job.id)
  gather('SADD', 'draftmill:users', job.user)
  allowances[job.user] = allowance(job.user) - 1
  is_claimed[job.id] = true
  claimed[#claimed + 1] =
    { job.id, job.data, token, job.batch, job.custom_id, NOW - job.enqueued, alone, job.keep or '' }
end

-- Whether a job that was taken from a list may run; settles what is to become of it if not.
local function may_run(job, id)
  if not job then
    local ghost = read_ghost(id)
    if ghost then record_taken(ghost) end
  elseif not is_open(job) then
    if job.status == 'queued' then -- nobody submitted it by draftmill
      file(job, 'failed')
      redis.call('HSET', job.key, 'exc_info', 'this job was not submitted by draftmill')
    end
  elseif is_claimed[id] or leased(job) then
    return false
  elseif cancelled(job) then
    record_cancelled(job)
  elseif job.status == 'canceled' then
    record_taken(job)
  else
    return true
  end
  return false
end

local function paused(batch)
  return redis.call('HEXISTS', 'draftmill:batch:' .. batch, 'paused_at') == 1
end

-- Leases one job that must run alone, if there is one whose user is not at the limit and whose batch is not paused.
local function claim_alone()
  for _ = 1, math.min(MOST_ALONE, redis.call('LLEN', ALONE)) do
    local id = redis.call('LPOP', ALONE)
    local job = read_job(id, true)
    if may_run(job, id) then
      if allowance(job.user) > 0 and not paused(job.batch) then
        take_up(job)
        return claim(job, 1)
      end
      redis.call('RPUSH', ALONE, id)
    end
  end
end

-- Whether this worker is the one that drains for a job that must run alone.
local function drains()
  local first = redis.call('LINDEX', ALONE, 0)
  if not first then return false end
  local about = redis.call('HMGET', 'rq:job:' .. first, 'draftmill_enqueued', 'draftmill_batch')
  if paused(about[2] or '') then -- another may be next
    redis.call('RPUSH', ALONE, redis.call('LPOP', ALONE))
    return false
  end
  local since = tonumber(about[1]) or NOW
  if NOW - since > PATIENCE * lease then redis.call('SET', DRAINS, worker, 'NX', 'PX', PATIENCE * lease) end
  if redis.call('GET', DRAINS) ~= worker then return false end
  redis.call('PEXPIRE', DRAINS, PATIENCE * lease)
  return true
end

-- Whether at least so many jobs are queued. Counts some more at once, for this claim takes one after the other.
local counted = 0
local function are_queued(fewest)
  if counted - #claimed < fewest then counted = count_queued(fewest + wanted) + #claimed end
  return counted - #claimed >= fewest
end

-- Whether this worker passes the next job of a queue to faster ones.
local passed, would_pass = false, false
local function passes(queue)
  if behind == 0 then return false end
  local key = 'rq:job:' .. (redis.call('LINDEX', queue, 0) or '')
  if redis.pcall('HEXISTS', key, 'data') ~= 1 then return false end
  local about = redis.call('HMGET', key, 'draftmill_size', 'draftmill_enqueued')
  local size = (tonumber(about[1]) or mean) / mean
  local waits = #claimed >= free
  local fewest = math.ceil(behind * size + (waits and meanwhile or 0))
  if are_queued(fewest) then return false end
  if waits then return true end
  would_pass = true
  if since == 0 then since = NOW end
  local enqueued = tonumber(about[2]) or 0
  if enqueued > since then -- it came later
    if NOW - enqueued > takes * size then return false end
  else
    longest = math.max(longest, size)
    if NOW - since > takes * longest then return false end
  end
  passed = true
  return true
end

if drains() then
  if held == 0 then
    redis.call('SET', DRAINS, '-', 'PX', PATIENCE * lease)
    claim_alone()
  end
  if held > 0 or #claimed > 0 then
    write()
    return { claimed, 0, '0', '0' }
  end
end

local served, passes_left = {}, MOST_PASSED
while #claimed < wanted and looked_at < MOST_LOOKED_AT and passes_left > 0 do
  local flow = next_flow()
  if not flow then break end
  local queue, batch, due = next_batch(flow)
  if queue and passes('rq:queue:' .. queue) then
    flow.passed, passes_left = true, passes_left - 1
    queue = nil
  end
  local id = queue and redis.call('LPOP', 'rq:queue:' .. queue)
  if queue and not id then
    redis.call('ZREM', flow.key, batch)
  elseif id and string.match(id, '^[%w_.-]+$') then
    local job = read_job(id, true)
    if job then job.queue = queue end
    if may_run(job, id) then
      claim(job, 0)
      flow.due, served[batch] = flow.due + flow.cost, queue
      redis.call('ZADD', flow.key, 'XX', due + 1, batch)
    end
  end
end
if #claimed == 0 and held == 0 then claim_alone() end
write()

for _, flow in ipairs(flows) do
  if flow.due ~= flow.was then redis.call('ZADD', TURNS, 'XX', flow.due, flow.name) end
end
if clock > 0 and redis.call('EXISTS', PARKED) == 1 then redis.call('SET', of_pair('clock', pair), clock) end
for batch, queue in pairs(served) do -- since when the next job of each waits
  local next = redis.call('LINDEX', 'rq:queue:' .. queue, 0)
  local since = next and redis.call('HGET', 'rq:job:' .. next, 'draftmill_enqueued')
  if since and since ~= noted[batch] then note_wait(batch, queue, since) end
end
if passed and redis.call('LLEN', of_pair('bell', pair)) == 0 then ring(pair, 1) end -- one who waits may be faster
if not would_pass then since, longest = 0, 0 end
return { claimed, passed and 1 or 0, string.format('%.0f', since), string.format('%.3f', longest) }
