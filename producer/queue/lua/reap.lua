-- Takes back expired leases, queues again what was to be tried later, and repairs what others than draftmill took away.
-- Keys: see record.lua.
--   ARGV[3]  most jobs to look at   ARGV[4]  most batches to look at
-- Returns {requeued, failed as poison, ended because RQ's tools took them, cancelled batches with lines to end}.
-- Also forgets some of the queues and batches that are listed and gone.

local most, most_batches = tonumber(ARGV[3]), tonumber(ARGV[4])
local requeued, poisoned, taken = 0, 0, 0

-- Whether Redis was within reach long enough for whoever lives to have renewed leases of this length (see renew.lua).
local last = tonumber(redis.call('HGET', 'draftmill:alive', 'last')) or 0
local function steady(length)
  local since = tonumber(redis.call('HGET', 'draftmill:alive', length)) or NOW
  return NOW - last <= length / 2 and NOW - since >= length
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', NOW, 'LIMIT', 0, most)) do
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
    -- its worker may be about to renew
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

-- Goes through the open jobs of a batch of which not all are to be found, until so many are settled: ends those that RQ's
-- tools cancelled or deleted, and queues again those that only their queue's list has lost.
local function repair(batch, queues, missing)
  local key, queued, own = 'draftmill:batch:' .. batch, {}, {}
  for _, queue in ipairs(queues) do
    own[queue] = true
    for _, id in ipairs(redis.call('LRANGE', 'rq:queue:' .. queue, 0, -1)) do queued[id] = true end
  end
  local place = redis.call('HGET', key, 'repaired') or '0'
  local ends = place == '0' and 1 or 2 -- how often it comes to the end: whoever begins in the middle goes round once
  repeat
    local found = redis.call('HSCAN', 'draftmill:open:' .. batch, place, 'COUNT', most)
    place = found[1]
    if place == '0' then ends = ends - 1 end
    for i = 1, #found[2], 2 do
      local id = found[2][i]
      if not queued[id] and not leased({ id = id })
        and redis.call('SISMEMBER', 'draftmill:aside:' .. batch, id) == 0 then
        local job = read_job(id) or read_ghost(id)
        if job.gone or job.status == 'canceled' then
          record_taken(job)
          taken = taken + 1
        else
          redis.call('RPUSH', 'rq:queue:' .. (own[job.queue] and job.queue or queues[1]), id)
          requeued = requeued + 1
        end
        missing = missing - 1
      end
    end
  until ends == 0 or missing <= 0 or taken + requeued >= most
  redis.call('HSET', key, 'repaired', place)
end

-- All batches that are not complete, in turns.
local to_end = {}
for _, batch in ipairs(redis.call('ZRANGE', UNENDED, 0, most_batches - 1)) do
  redis.call('ZADD', UNENDED, 'XX', NOW, batch)
  local queues, running = queues_of(batch), 'draftmill:running:batch:' .. batch
  if #queues == 0 then
    redis.call('ZREM', UNENDED, batch)
    redis.call('DEL', 'draftmill:open:' .. batch, 'draftmill:aside:' .. batch)
  elseif cancelled({ batch = batch }) then
    to_end[#to_end + 1] = batch
  else
    for _, id in ipairs(redis.call('SRANDMEMBER', running, 20)) do
      if not leased({ id = id }) then redis.call('SREM', running, id) end
    end
    local known = redis.call('SCARD', running) + redis.call('SCARD', 'draftmill:aside:' .. batch)
    for _, queue in ipairs(queues) do known = known + redis.call('LLEN', 'rq:queue:' .. queue) end
    local missing = redis.call('HLEN', 'draftmill:open:' .. batch) - known
    if missing > 0 then repair(batch, queues, missing) end
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
return { requeued, poisoned, taken, to_end }
