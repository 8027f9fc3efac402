-- Takes back expired leases, queues again what was to be tried later, and repairs what others than draftmill took away.
-- Keys: see record.lua.
--   ARGV[3]  most jobs to look at   ARGV[4]  most batches to look at   ARGV[5]  queue under which RQ lists our workers
-- Returns {requeued, failed as poison, ended because RQ's tools took them, cancelled batches with lines to end, batches
-- with lines for repair.lua}. Also forgets some of the queues, batches and workers that are listed and gone.

local REPAIR_MS = 5000 -- for which one worker alone repairs a batch; it says when it is done before
local most, most_batches = tonumber(ARGV[3]), tonumber(ARGV[4])
local requeued, poisoned, taken = 0, 0, 0

-- Whether Redis was within reach long enough for whoever lives to have renewed leases of this length (see renew.lua).
local last = tonumber(redis.call('HGET', 'draftmill:alive', 'last')) or 0
local function steady(length)
  local since = tonumber(redis.call('HGET', 'draftmill:alive', length)) or NOW
  return NOW - last <= length / 2 and NOW - since >= length
end

-- Leases that have expired, each as {queue, lease}.
local expired = {}
for _, queue in ipairs(redis.call('HKEYS', RUNNING)) do
  local key = 'rq:wip:' .. queue
  if redis.call('EXISTS', key) == 0 then redis.call('HDEL', RUNNING, queue) end
  for _, lease in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', score_of(NOW), 'LIMIT', 0, most - #expired)) do
    expired[#expired + 1] = { queue, lease }
  end
end

for _, each in ipairs(expired) do
  local queue, lease = unpack(each)
  local id = string.match(lease, '^(.*):[^:]*$') or ''
  local job = read_job(id) or read_ghost(id, string.match(queue, ':([^:]+)$') or '')
  if not job or job.queue ~= queue or lease_of(job) ~= lease then -- it is nobody's any more
    redis.call('ZREM', 'rq:wip:' .. queue, lease)
  elseif job.gone then
    record_taken(job)
    taken = taken + 1
  elseif not is_open(job) then
    drop_lease(job)
  elseif cancelled(job) then
    record_cancelled(job)
  elseif not steady(job.lease_ms) then
    -- its worker may be about to renew; meanwhile it must not keep others from their turn
    if #expired == most then redis.call('ZADD', 'rq:wip:' .. queue, score_of(NOW), lease) end
  elseif job.status == 'canceled' then
    record_taken(job)
    taken = taken + 1
  elseif job.leases >= MOST_LEASES then
    local message = 'given up: the worker that ran this request died or was cut off, ' .. job.leases .. ' times'
    record(job, 'failed', error_line(job, 'lost_leases', message))
    explain(job, 'failed', job.worker, message)
    poisoned = poisoned + 1
  else
    drop_lease(job)
    requeue(job)
    requeued = requeued + 1
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LATER, '-inf', NOW, 'LIMIT', 0, most)) do
  local job = read_job(id)
  if job and job.status == 'canceled' and is_open(job) then
    record_taken(job)
    taken = taken + 1
  elseif job then
    take_up(job)
    if is_open(job) and not leased(job) then requeue(job) end
  end
  redis.call('ZREM', LATER, id)
end

write() -- what follows looks at it

-- All batches that are not complete, in turns.
local to_end, to_repair = {}, {}
for _, batch in ipairs(redis.call('ZRANGE', UNENDED, 0, most_batches - 1)) do
  redis.call('ZADD', UNENDED, 'XX', NOW, batch)
  local about = redis.call('HMGET', 'draftmill:batch:' .. batch, 'cancelled_at', 'repairing')
  local queues, aside = queues_of(batch), 'draftmill:aside:' .. batch
  if #queues == 0 then
    redis.call('ZREM', UNENDED, batch)
    redis.call('DEL', 'draftmill:open:' .. batch, aside)
  elseif about[1] then
    to_end[#to_end + 1] = batch
  else
    for _, queue in ipairs(queues) do
      if redis.call('EXISTS', 'rq:wip:' .. queue) == 1 then redis.call('HSETNX', RUNNING, queue, owner_of(batch)) end
    end
    for _, id in ipairs(redis.call('SRANDMEMBER', aside, 20)) do
      if redis.call('EXISTS', 'rq:job:' .. id) == 0 then
        local ghost = read_ghost(id, batch)
        if ghost then record_taken(ghost) else redis.call('SREM', aside, id) end
        taken = taken + (ghost and 1 or 0)
      end
    end
    write()
    local known = count_known(batch, queues)
    local open = redis.call('HLEN', 'draftmill:open:' .. batch)
    if open > known and NOW - (tonumber(about[2]) or 0) >= REPAIR_MS then
      redis.call('HSET', 'draftmill:batch:' .. batch, 'repairing', NOW)
      to_repair[#to_repair + 1] = batch
    end
    take_turns(batch)
    expire_if_complete(batch)
  end
end

for _, queue in ipairs(redis.call('SRANDMEMBER', 'rq:queues', 20)) do
  local batch = string.match(queue, '^rq:queue:draftmill%.' .. WIRE .. '%..+:([^:]+)$')
  if batch and redis.call('EXISTS', 'draftmill:batch:' .. batch) == 0 then redis.call('SREM', 'rq:queues', queue) end
end
for _, batch in ipairs(redis.call('ZRANDMEMBER', 'draftmill:batches', 20)) do
  if redis.call('EXISTS', 'draftmill:batch:' .. batch) == 0 then redis.call('ZREM', 'draftmill:batches', batch) end
end
local workers = 'rq:workers:' .. ARGV[5]
for _, worker in ipairs(redis.call('SRANDMEMBER', workers, 20)) do
  if redis.call('EXISTS', worker) == 0 then
    redis.call('SREM', workers, worker)
    redis.call('SREM', 'rq:workers', worker)
  end
end
return { requeued, poisoned, taken, to_end, to_repair }
