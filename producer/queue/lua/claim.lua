-- Takes up to n jobs of a pair from the queues of its batches and leases them to a worker. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  length of a lease in ms   ARGV[5]  number of the first lease   ARGV[6]  n
--   ARGV[7]  how many of these n would only wait in the worker   ARGV[8]  how many jobs it has already
--   ARGV[9]  leases after which a job is poison   ARGV[10]  pair, as it stands in the names of queues
-- Returns a list of {job, data, token, batch, custom_id, ms in the queue, 1 if it must run alone, keep}. Entries of a
-- queue whose job is gone, ended or already leased are dropped; the jobs of a cancelled batch end here.
-- `rq suspend` stops claiming.
--
-- Batches take turns (virtual clock): the next job is that of the batch whose next job is due first, and then the one after
-- it comes due later by what the batch's priority costs. So batches of one priority share alike, a high one gets 16
-- jobs for each of a normal one, and a low one is served too. A user's batches wait while as many jobs of that
-- user run as the limit allows.
--
-- Jobs that would wait are taken from full queues only, a quarter of what is there: so a row that ends is filled
-- without a trip to Redis, and yet the last jobs of a batch go to the workers that have a row free.
-- A job on its last lease runs alone: whatever killed its workers, its neighbours must not be blamed a third time.
-- A worker that meets one claims nothing more until it has finished what it has, and then only this one.

local worker, lease, number, wanted = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ahead, held, limit = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local TURNS = 'draftmill:turns:' .. ARGV[10]
local MOST_LOOKED_AT = 1000
if redis.call('EXISTS', 'rq:suspended') == 1 then return {} end

local turns, there = {}, 0
local scores = redis.call('ZRANGE', TURNS, 0, -1, 'WITHSCORES')
for i = 1, #scores, 2 do
  local priority, batch = string.match(scores[i], '%.(%a+)%.([^.]+)$')
  local due = tonumber(scores[i + 1])
  local turn = { queue = scores[i], due = due, was = due, cost = COST[priority] or COST.low, batch = batch or '' }
  turns[#turns + 1] = turn
  there = there + redis.call('LLEN', 'rq:queue:' .. turn.queue)
end
wanted = wanted - ahead + math.min(ahead, math.floor(there / 4))

-- How many more jobs of a user may run.
local allowances = {}
local function allowance(user)
  if not allowances[user] then
    local cap = redis.call('HGET', 'draftmill:limits', user) or redis.call('HGET', 'draftmill:limits', '*')
    local running = redis.call('HGET', 'draftmill:running', user) or 0
    allowances[user] = cap and tonumber(cap) - running or math.huge
  end
  return allowances[user]
end

local clock = 0
local function next_turn()
  local best
  for _, turn in ipairs(turns) do
    if not turn.over and (not best or turn.due < best.due) then
      turn.user = turn.user or user_of(turn.batch)
      turn.capped = allowance(turn.user) <= 0
      if not turn.capped then best = turn end
    end
  end
  if best then clock = best.due end
  return best
end

local function lease_job(job, queue)
  job.queue = queue
  local token = worker .. '.' .. number
  local execution = job.id .. ':' .. token
  local seconds = math.floor(NOW / 1000)
  number = number + 1
  redis.call('ZADD', 'draftmill:leases', NOW + lease, job.id)
  redis.call('HSET', job.key, 'status', 'started', 'origin', queue, 'started_at', AT, 'worker_name', worker,
    'draftmill_lease', token, 'draftmill_leases', job.leases + 1)
  redis.call('ZADD', 'rq:wip:' .. queue, seconds + TEN_YEARS, execution)
  redis.call('HSET', 'rq:execution:' .. execution, 'id', token, 'job_id', job.id, 'worker_name', worker,
    'created_at', seconds, 'last_heartbeat', seconds)
  redis.call('EXPIRE', 'rq:execution:' .. execution, TTL)
  redis.call('SADD', 'rq:worker:' .. worker .. ':executions', execution)
  redis.call('EXPIRE', 'rq:worker:' .. worker .. ':executions', TTL)
  count_running(job.batch, 1)
  return token
end

-- Notes since when the next job of a batch waits, if there is one.
local function note_waiting(queue, batch)
  local next = redis.call('LINDEX', 'rq:queue:' .. queue, 0)
  local since = next and redis.call('HGET', 'rq:job:' .. next, 'draftmill_enqueued')
  if since then redis.call('HSET', 'draftmill:batch:' .. batch, 'waiting_since', since) end
end

local claimed, looked_at, is_alone = {}, 0, false
while #claimed < wanted and looked_at < MOST_LOOKED_AT and not is_alone do
  local turn = next_turn()
  if not turn then break end
  local list = 'rq:queue:' .. turn.queue
  local id = redis.call('LPOP', list)
  looked_at = looked_at + 1
  local job = id and string.match(id, '^[%w_.-]+$') and read_job(id)
  local outcome = job and done(job)
  if not id then
    turn.over = true
    redis.call('ZREM', TURNS, turn.queue)
  elseif outcome then
    redis.call('HSET', job.key, 'status', STATUS[outcome])
  elseif job and not leased(job) then
    is_alone = job.leases == limit - 1
    if cancelled(job) then
      record_cancelled(job)
    elseif is_alone and held + #claimed > 0 then
      redis.call('LPUSH', list, id)
    else
      local token = lease_job(job, turn.queue)
      claimed[#claimed + 1] =
        { id, job.data, token, job.batch, job.custom_id, NOW - job.enqueued, is_alone and 1 or 0, job.keep }
      turn.due, turn.served = turn.due + turn.cost, job.batch
      allowances[turn.user] = allowances[turn.user] - 1
    end
  end
end

-- A batch whose user is at the limit saves nothing up meanwhile.
for _, turn in ipairs(turns) do
  if turn.capped then turn.due = math.max(turn.due, clock) end
  if turn.due ~= turn.was then redis.call('ZADD', TURNS, 'XX', turn.due, turn.queue) end
  if turn.served and turn.served ~= '' then note_waiting(turn.queue, turn.served) end
end
return claimed
