-- Extends the leases that a worker still holds. Keys: see record.lua.
--   ARGV[3]  length of a lease in ms, then for each job: id, token
-- Returns what the worker should drop: a list of {job, 'lost' | 'cancelled'}.

local lease = tonumber(ARGV[3])
local drop = {}
for i = 4, #ARGV, 2 do
  local job = read_job(ARGV[i])
  if not job or job.token ~= ARGV[i + 1] or not leased(job) then
    drop[#drop + 1] = { ARGV[i], 'lost' }
  else
    redis.call('ZADD', 'draftmill:leases', 'XX', NOW + lease, job.id)
    if cancelled(job) then drop[#drop + 1] = { job.id, 'cancelled' } end
  end
end
return drop
