-- Gives back a job that failed through no fault of its own: it runs again later, or has failed for good.
-- This lease counts. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  job   ARGV[5]  token   ARGV[6]  why it failed
--   ARGV[7]  ms until the second try; each further one waits four times as long
--   ARGV[8]  leases after which a job has failed
-- Returns 'recorded', or 'stale' if it is no longer the caller's to give back.

local job, message, wait, limit = read_job(ARGV[4]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
if not job or job.token ~= ARGV[5] or not leased(job) then return 'stale' end
if job.leases >= limit then
  record(job, 'failed', error_line(job, 'engine_failed', message))
  explain(job, 'failed', job.worker, message)
else
  drop_lease(job)
  redis.call('HSET', job.key, 'status', 'scheduled', 'started_at', '', 'worker_name', '')
  redis.call('ZADD', 'draftmill:later', NOW + wait * 4 ^ (job.leases - 1), job.id)
end
return 'recorded'
