-- Takes back expired leases of one queue: the job goes to the front, or fails as poison. Keys: see record.lua.
--   ARGV[3]  queue   ARGV[4]  most jobs to look at   ARGV[5]  leases after which a job is poison
-- Returns {requeued, failed as poison}. Also forgets what RQ's registries of ended jobs need no longer hold.

local queue, most, limit = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local leases = 'draftmill:leases:' .. queue
local requeued, poisoned = 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', NOW, 'LIMIT', 0, most)) do
  local job = read_job(id)
  if not job then
    redis.call('ZREM', leases, id)
  elseif done(job) then
    drop_lease(job)
  elseif cancelled(job) then
    record_cancelled(job)
  elseif job.leases >= limit then
    local message = 'given up after ' .. job.leases .. ' workers took this request and died or lost it'
    record(job, 'failed', error_line(job, 'lost_leases', message))
    redis.call('HSET', job.key, 'exc_info', message)
    poisoned = poisoned + 1
  else
    drop_lease(job)
    requeue(job)
    requeued = requeued + 1
  end
end

for _, status in pairs(STATUS) do
  redis.call('ZREMRANGEBYSCORE', 'rq:' .. status .. ':' .. queue, '-inf', math.floor(NOW / 1000))
end
return { requeued, poisoned }
