-- Gives back a job that failed through no fault of its own: it runs again later, or has failed for good.
-- This lease counts. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  job   ARGV[5]  token   ARGV[6]  why it failed
--   ARGV[7]  ms until the second try; each further one waits four times as long
-- Returns 'recorded', or 'stale' if it is no longer the caller's to give back.

local job, message, wait = read_job(ARGV[4]), ARGV[6], tonumber(ARGV[7])
if not job or job.token ~= ARGV[5] or not leased(job) or not is_open(job) then return 'stale' end
blame(job)
if job.leases >= MOST_LEASES then
  record(job, 'failed', error_line(job, 'engine_failed', message))
  explain(job, 'failed', job.worker, message)
else
  drop_lease(job)
  redis.call('HSET', job.key, 'status', 'scheduled', 'started_at', '', 'worker_name', '')
  set_aside(job)
  redis.call('ZADD', LATER, NOW + wait * 4 ^ (job.leases - 1), job.id)
end
return 'recorded'
