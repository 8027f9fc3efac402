-- Extends the leases that a worker still holds, and notes that Redis is within reach. Keys: see record.lua.
--   ARGV[3]  length of a lease in ms, then for each job: id, token
-- Returns what the worker should drop: a list of {job, 'lost' | 'cancelled' | 'stopped'}.
--
-- While Redis is away nobody can renew, so afterwards reap.lua waits for one lease: until then all who live have renewed.
-- It was away for a lease of a length if no renewal came for half that length.

local lease = tonumber(ARGV[3])
local alive = redis.call('HGETALL', 'draftmill:alive')
local lengths, last = { [ARGV[3]] = true }, 0
for i = 1, #alive, 2 do
  if alive[i] == 'last' then last = tonumber(alive[i + 1]) else lengths[alive[i]] = true end
end
for length in pairs(lengths) do
  local was_away = NOW - last > tonumber(length) / 2
  redis.call(was_away and 'HSET' or 'HSETNX', 'draftmill:alive', length, NOW)
end
redis.call('HSET', 'draftmill:alive', 'last', NOW)

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
