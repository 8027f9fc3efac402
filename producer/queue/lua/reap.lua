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

local expired = redis.call('ZRANGEBYSCORE', LEASES, '-inf', NOW, 'LIMIT', 0, most)
for _, id in ipairs(expired) do
  local job = read_job(id) or read_ghost(id)
  if not job then
    redis.call('ZREM', LEASES, id)
  elseif job.gone then
    record_taken(job)
    taken = taken + 1
  elseif not is_open(job) then
    drop_lease(job)
  elseif cancelled(job) then
    record_cancelled(job)
  elseif not steady(job.lease_ms) then
    -- its worker may be about to renew; meanwhile it must not keep others from their turn
    if #expired == most then redis.call('ZADD', LEASES, NOW, id) end
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
  local job = read_job(id) or read_ghost(id)
  if not job then
    redis.call('ZREM', LATER, id)
  elseif job.gone or job.status == 'canceled' then
    if job.gone or is_open(job) then
      record_taken(job)
      taken = taken + 1
    end
  else
    take_up(job)
    if is_open(job) and not leased(job) then requeue(job) end
  end
  redis.call('ZREM', LATER, id)
end

-- All batches that are not complete, in turns.
local to_end, to_repair = {}, {}
for _, batch in ipairs(redis.call('ZRANGE', UNENDED, 0, most_batches - 1)) do
  redis.call('ZADD', UNENDED, 'XX', NOW, batch)
  local about = redis.call('HMGET', 'draftmill:batch:' .. batch, 'cancelled_at', 'repairing')
  local queues, running = queues_of(batch), 'draftmill:running:batch:' .. batch
  if #queues == 0 then
    redis.call('ZREM', UNENDED, batch)
    redis.call('DEL', 'draftmill:open:' .. batch, 'draftmill:aside:' .. batch)
  elseif about[1] then
    to_end[#to_end + 1] = batch
  else
    for _, id in ipairs(redis.call('SRANDMEMBER', running, 20)) do
      if not leased({ id = id }) then redis.call('SREM', running, id) end
    end
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
for _, user in ipairs(redis.call('SRANDMEMBER', 'draftmill:users', 20)) do
  local running = 'draftmill:running:user:' .. user
  for _, id in ipairs(redis.call('SRANDMEMBER', running, 20)) do
    if not leased({ id = id }) then redis.call('SREM', running, id) end
  end
  if redis.call('EXISTS', running) == 0 then redis.call('SREM', 'draftmill:users', user) end
end
local workers = 'rq:workers:' .. ARGV[5]
for _, worker in ipairs(redis.call('SRANDMEMBER', workers, 20)) do
  if redis.call('EXISTS', worker) == 0 then
    redis.call('SREM', workers, worker)
    redis.call('SREM', 'rq:workers', worker)
  end
end
write()
return { requeued, poisoned, taken, to_end, to_repair }
