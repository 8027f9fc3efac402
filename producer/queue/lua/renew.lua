-- Extends the leases that a worker still holds, and notes that Redis is within reach. Keys: see record.lua.
--   ARGV[3]  length of a lease in ms, then for each job: id, token
-- Returns what the worker should drop: a list of {job, 'lost' | 'cancelled' | 'stopped'}.

local lease = tonumber(ARGV[3])
note_alive(ARGV[3])

local drop = {}
for i = 4, #ARGV, 2 do
  local job = read_job(ARGV[i])
  if not job or job.token ~= ARGV[i + 1] or not leased(job) then
    drop[#drop + 1] = { ARGV[i], 'lost' }
  else
    gather('ZADD', LEASES, NOW + lease, job.id)
    if cancelled(job) then
      drop[#drop + 1] = { job.id, 'cancelled' }
    elseif job.status == 'canceled' then -- by RQ's tools
      drop[#drop + 1] = { job.id, 'stopped' }
    end
  end
end
write()
return drop
