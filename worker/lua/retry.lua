-- Gives back jobs that failed through no fault of their own: they run again later, or have failed for good.
-- These leases count. Keys: see record.lua.
--   ARGV[3]  why they failed   ARGV[4]  ms until the second try; each further one waits four times as long
--   ARGV[5]  leases after which a job has failed   then for each job: id, token
-- Returns how many will be tried again.

local message, wait, limit = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local again = 0
for i = 6, #ARGV, 2 do
  local job = read_job(ARGV[i])
  if job and job.token == ARGV[i + 1] and leased(job) then
    if job.leases >= limit then
      record(job, 'failed', error_line(job, 'engine_failed', message))
      redis.call('HSET', job.key, 'exc_info', message)
    else
      drop_lease(job)
      redis.call('HSET', job.key, 'status', 'scheduled', 'started_at', '', 'worker_name', '')
      redis.call('ZADD', 'draftmill:later', NOW + wait * 4 ^ (job.leases - 1), job.id)
      again = again + 1
    end
  end
end
return again
