-- Ends one job with its outcome, unless it has one or is no longer the caller's to end. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  job   ARGV[5]  token of the lease under which it ran
--   ARGV[6]  'done' | 'failed' | 'cancelled'   ARGV[7]  output line
--   ARGV[8]  prompt tokens   ARGV[9]  completion tokens   ARGV[10]  why it failed, or ''
--   ARGV[11]  millijoules that its machine drew for it, or ''
-- Returns 'recorded', or 'stale' if the commit was dropped. Sending a commit again is harmless.
--
-- A lease that has run out but was taken by nobody else still counts: the result is as good as any, and a job that is
-- no longer open does not run again. A job that was leased anew belongs to the new holder, and a line that was queued
-- again is of another generation.

local worker, token, outcome = ARGV[3], ARGV[5], ARGV[6]
local job = read_job(ARGV[4])
if job and not is_open(job) then return job.token == token and 'recorded' or 'stale' end
local held = job and leased(job)
if not job or string.match(token, '%.(%d+)%.%d+$') ~= job.generation or (held and job.token ~= token) then
  return 'stale'
end

if job.worker ~= worker or job.token ~= token then
  redis.call('HSET', job.key, 'worker_name', worker, 'draftmill_lease', token)
end
record(job, outcome, ARGV[7], ARGV[8], ARGV[9], ARGV[11])
if not held then redis.call('LREM', 'rq:queue:' .. job.queue, 1, job.id) end
if ARGV[10] ~= '' then explain(job, outcome, worker, ARGV[10]) end
return 'recorded'
