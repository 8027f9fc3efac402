-- Takes back expired leases, and queues again what was to be tried later. Keys: see record.lua.
--   ARGV[3]  most jobs to look at   ARGV[4]  leases after which a job is poison
--   ARGV[5]  pair, as it stands in the names of queues
-- Returns {requeued, failed as poison, cancelled batches of this pair that have queued jobs}.
-- Also forgets some of the queues and batches that are listed and gone.

local most, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
local requeued, poisoned = 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'draftmill:leases', '-inf', NOW, 'LIMIT', 0, most)) do
  local job = read_job(id)
  if not job then
    redis.call('ZREM', 'draftmill:leases', id)
  elseif done(job) then
    drop_lease(job)
  elseif cancelled(job) then
    record_cancelled(job)
  elseif job.leases >= limit then
    local message = 'given up after ' .. job.leases .. ' workers took this request and died or lost it'
    record(job, 'failed', error_line(job, 'lost_leases', message))
    explain(job, 'failed', job.worker, message)
    poisoned = poisoned + 1
  else
    drop_lease(job)
    requeue(job)
    requeued = requeued + 1
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'draftmill:later', '-inf', NOW, 'LIMIT', 0, most)) do
  redis.call('ZREM', 'draftmill:later', id)
  local job = read_job(id)
  if job and not done(job) and not leased(job) then requeue(job) end
end

for _, queue in ipairs(redis.call('SRANDMEMBER', 'rq:queues', 20)) do
  local batch = string.match(queue, '^rq:queue:draftmill%..+%.%a+%.([^.]+)$')
  if batch and redis.call('EXISTS', 'draftmill:batch:' .. batch) == 0 then redis.call('SREM', 'rq:queues', queue) end
end
for _, batch in ipairs(redis.call('ZRANGE', 'draftmill:batches', 0, 19)) do
  if redis.call('EXISTS', 'draftmill:batch:' .. batch) == 0 then redis.call('ZREM', 'draftmill:batches', batch) end
end

local to_end = {}
for _, queue in ipairs(redis.call('ZRANGE', 'draftmill:turns:' .. ARGV[5], 0, -1)) do
  local batch = string.match(queue, '%.([^.]+)$')
  if redis.call('HEXISTS', 'draftmill:batch:' .. batch, 'cancelled_at') == 1 then to_end[#to_end + 1] = batch end
end
return { requeued, poisoned, to_end }
