-- Extends the leases that a worker still holds, and notes that Redis is within reach. A lease of which less than an
-- eighth has passed stays as it is, because each change is one more in the append-only file. Keys: see record.lua.
--   ARGV[3]  length of a lease in ms, then for each job: id, token
-- Returns what the worker should drop: a list of {job, 'lost' | 'cancelled' | 'stopped'}.

local lease = tonumber(ARGV[3])
note_alive(ARGV[3])

local drop = {}
for i = 4, #ARGV, 2 do
  local job = read_job(ARGV[i])
  local expires = job and job.token == ARGV[i + 1] and leased(job)
  if not expires then
    drop[#drop + 1] = { ARGV[i], 'lost' }
  else
    if expires - NOW < lease * 7 / 8 then
      gather('ZADD', 'rq:wip:' .. job.queue, score_of(NOW + lease), lease_of(job))
    end
    if cancelled(job) then
      drop[#drop + 1] = { job.id, 'cancelled' }
    elseif job.status == 'canceled' then -- by RQ's tools
      drop[#drop + 1] = { job.id, 'stopped' }
    end
  end
end
return drop
