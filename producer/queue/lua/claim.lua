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
    allowances[user] = tonumber(cap) or math.huge
    local queues = cap and redis.call('HGETALL', RUNNING) or {}
    for i = 1, #queues, 2 do
      local running = queues[i + 1] == user and redis.call('ZCARD', 'rq:wip:' .. queues[i]) or 0
      allowances[user] = allowances[user] - running
    end
  end
  return allowances[user]
end

local function user_of(flow)
  return string.match(flow, '^%a+:(.*)$') or ''
end

local function cost_of(flow)
  return COST[string.match(flow, '^(%a+):') or ''] or COST.low
end

-- A job that ends unparks the flows of its user; this is for limits that were raised, a few at a time.
for _, flow in ipairs(redis.call('ZRANDMEMBER', PARKED, MOST_UNPARKED)) do
  if allowance(user_of(flow)) > 0 then unpark(pair, flow, user_of(flow)) end
end

-- Lists of jobs -> how many of their entries this claim takes, which stay in them until the end.
local taken = {}
local function first_in(list)
  return redis.call('LINDEX', list, taken[list] or 0)
end

-- Jobs that are queued, counted as far as it matters; in more batches than a claim looks at there are enough.
local function count_queued(enough)
  local there, looks = 0, 0
  for _, turns in ipairs({ TURNS, PARKED }) do
    for _, flow in ipairs(redis.call('ZRANGE', turns, 0, MOST_LOOKED_AT)) do
      for _, batch in ipairs(redis.call('ZRANGE', TURNS .. ':' .. flow, 0, math.min(enough, MOST_LOOKED_AT))) do
        local list = 'rq:queue:' .. queue_of(batch)
        there = there + redis.call('LLEN', list) - (taken[list] or 0)
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

-- Who takes turns in a sorted set. They are read one by one, in the order in which they are due, and the set stays as it
-- was until the end: those that were read are its first. Of two that are due at one time the first by name is first.
local all_turns, looked_at, clock = {}, 0, 0
local function read_next(turns)
  local found = redis.call('ZRANGE', turns.key, turns.read, turns.read, 'WITHSCORES')
  if not found[1] then return nil end
  turns.read = turns.read + 1
  return { name = found[1], due = tonumber(found[2]), was = tonumber(found[2]) }
end

local function turns_in(key)
  local turns = { key = key, read = 0 }
  turns.ahead = read_next(turns)
  all_turns[#all_turns + 1] = turns
  return turns
end

local function is_before(one, other)
  return not other or one.due < other.due or (one.due == other.due and one.name < other.name)
end

local function next_of(turns)
  local best
  for _, each in ipairs(turns) do
    if not (each.left or each.passed) and is_before(each, best) then best = each end
  end
  if turns.ahead and is_before(turns.ahead, best) then
    best = turns.ahead
    turns[#turns + 1] = best
    turns.ahead = read_next(turns)
  end
  return best
end

-- Notes that one that was read is no longer in the set.
local function leave(turns, one)
  one.left, turns.read = true, turns.read - 1
end

local flows = turns_in(TURNS)
local function next_flow()
  while looked_at < MOST_LOOKED_AT do
    local flow = next_of(flows)
    if not flow then return nil end
    local user = user_of(flow.name)
    if allowance(user) > 0 then
      clock = flow.due
      return flow
    end
    looked_at = looked_at + 1
    park(pair, flow.name, user, flow.due)
    leave(flows, flow)
  end
end

-- The flow's next batch; nothing once it has no more. `noted` is since when its next job waits, as the batch has it.
local SINCE = 'waiting_since ' .. pair
local function next_batch(flow)
  flow.batches = flow.batches or turns_in(TURNS .. ':' .. flow.name)
  while looked_at < MOST_LOOKED_AT do
    looked_at = looked_at + 1
    local batch = next_of(flow.batches)
    if not batch then
      redis.call('ZREM', TURNS, flow.name)
      leave(flows, flow)
      return nil
    end
    if batch.queue then return batch end
    local about =
      redis.call('HMGET', 'draftmill:batch:' .. batch.name, 'priority', 'user', 'cancelled_at', 'paused_at', SINCE)
    if about[1] and not about[3] and not about[4] and about[1] .. ':' .. about[2] == flow.name then
      batch.queue, batch.noted, is_cancelled[batch.name] = queue_of(batch.name), about[5], false
      return batch
    end
    redis.call('ZREM', flow.batches.key, batch.name) -- it is gone, cancelled, paused, or of another priority by now
    leave(flow.batches, batch)
  end
end

local claimed, is_claimed = {}, {}
local function claim(job, alone)
  local own = job.generation .. '.' .. number -- what of its token is not the worker's name
  local token = worker .. '.' .. own
  number = number + 1
  if job.queue ~= job.origin then redis.call('HSET', job.key, 'origin', job.queue) end
  local user = owner_of(job.batch)
  allowances[user] = allowance(user) - 1
  if job.counts then redis.call('HSET', job.key, 'leases', job.leases .. ' 0') end
  redis.call('HSET', job.key, 'status', 'started', 'started_at', AT, 'worker_name', worker, 'lease',
    own .. ' ' .. lease)
  gather('ZADD', 'rq:wip:' .. job.queue, score_of(NOW + lease), job.id .. ':' .. token)
  if redis.call('HGET', RUNNING, job.queue) ~= user then redis.call('HSET', RUNNING, job.queue, user) end
  is_claimed[job.id] = true
  claimed[#claimed + 1] =
    { job.id, job.data, token, job.batch, job.custom_id, NOW - job.enqueued, alone, job.keep or '' }
end

-- Whether a job that was taken from a list may run; settles what is to become of it if not. Of one whose hash is gone
-- somebody must know the batch; else its batch will miss it.
local function may_run(job, id, batch)
  if not job then
    local ghost = batch and read_ghost(id, batch)
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
    local job = read_job(id, nil, true)
    if may_run(job, id) then
      if allowance(owner_of(job.batch)) > 0 and not paused(job.batch) then
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
  local job = read_job(first)
  if job and paused(job.batch) then -- another may be next
    redis.call('RPUSH', ALONE, redis.call('LPOP', ALONE))
    return false
  end
  local waited = NOW - (job and job.enqueued or NOW)
  if waited > PATIENCE * lease then redis.call('SET', DRAINS, worker, 'NX', 'PX', PATIENCE * lease) end
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

-- Since when the next job of a list waits, and its size; nothing if there is none.
local function next_in(list)
  local first = first_in(list)
  local field = first and redis.pcall('HGET', 'rq:job:' .. first, 'queued')
  local _, size, since = when_queued(field)
  return since, tonumber(size)
end

-- Whether this worker passes the next job of a list to faster ones.
local passed, would_pass = false, false
local function passes(list)
  if behind == 0 then return false end
  local enqueued, size = next_in(list)
  if not enqueued then return false end
  size = size > 0 and size / mean or 1
  local waits = #claimed >= free
  local fewest = math.ceil(behind * size + (waits and meanwhile or 0))
  if are_queued(fewest) then return false end
  if waits then return true end
  would_pass = true
  if since == 0 then since = NOW end
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
  if held > 0 or #claimed > 0 then return { claimed, 0, '0', '0' } end
end

local served, passes_left = {}, MOST_PASSED
while #claimed < wanted and looked_at < MOST_LOOKED_AT and passes_left > 0 do
  local flow = next_flow()
  if not flow then break end
  local batch = next_batch(flow)
  local list = batch and 'rq:queue:' .. batch.queue
  local id = list and first_in(list)
  if batch and not id then
    redis.call('ZREM', flow.batches.key, batch.name)
    leave(flow.batches, batch)
  elseif id and passes(list) then
    flow.passed, passes_left = true, passes_left - 1
  elseif id then
    taken[list] = (taken[list] or 0) + 1
    local is_name = string.match(id, '^[%w_.-]+$')
    local job = is_name and read_job(id, batch.name, true)
    if job then job.queue = batch.queue end
    if is_name and may_run(job, id, batch.name) then
      claim(job, 0)
      flow.due, batch.due, served[list] = flow.due + cost_of(flow.name), batch.due + 1, batch
    end
  end
end
if #claimed == 0 and held == 0 then claim_alone() end

for list, count in pairs(taken) do
  redis.call('LPOP', list, count)
  taken[list] = nil
end
for _, turns in ipairs(all_turns) do
  for _, each in ipairs(turns) do
    if not each.left and each.due ~= each.was then gather('ZADD', turns.key, each.due, each.name) end
  end
end
if clock > 0 and redis.call('EXISTS', PARKED) == 1 then redis.call('SET', of_pair('clock', pair), clock) end
for list, batch in pairs(served) do
  local waits_since = next_in(list)
  if waits_since and tostring(waits_since) ~= batch.noted then note_wait(batch.name, batch.queue, waits_since) end
end
if passed and redis.call('LLEN', of_pair('bell', pair)) == 0 then ring(pair, 1) end -- one who waits may be faster
if not would_pass then since, longest = 0, 0 end
return { claimed, passed and 1 or 0, string.format('%.0f', since), string.format('%.3f', longest) }
