-- Keeps what a worker reports, for us and for RQ, and tells it what operators ask. A worker beats when it has renewed its
-- leases, if it has any. Keys: see record.lua.
--   ARGV[3]   worker   ARGV[4]  length of its leases in ms   ARGV[5]  seconds that a report is kept after the last one
--   ARGV[6]   queue under which RQ lists it   ARGV[7]  seconds until it counts as dead for RQ
--   ARGV[8]   what the last beat returned as seen, or '' with a report that is whole
--   ARGV[9]   how many fields of draftmill:fleet follow, then these
--   then      how many fields of RQ's hash follow, then these: field, value, …; then the report: field, value, …
-- A report that is not whole has the fields that changed since the last beat. What expires is kept for longer by each beat
-- that has fields of RQ's hash.
-- Returns {seen, the shortest lease that this Redis knows of in ms, the values of the fleet's fields}; nothing if Redis has
-- not got what the last beat wrote: it restarted or failed over, or a key has expired. Then the worker is to send a whole
-- report.

local worker, length, kept, queue, dead_after, seen = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local key, rq = 'draftmill:worker:' .. worker, 'rq:worker:' .. worker
local known = 10 + tonumber(ARGV[9])
local report = known + 1 + 2 * tonumber(ARGV[known])

local shortest = note_alive(length)
if seen ~= '' and (redis.call('HGET', key, 'seen') ~= seen or redis.call('EXISTS', rq) == 0) then return false end

seen = string.format('%.3f', NOW / 1000)
redis.call('HSET', key, 'seen', seen, unpack(ARGV, report))
if report > known + 1 then
  redis.call('HSETNX', key, 'started', seen)
  redis.call('EXPIRE', key, kept)
  redis.call('ZADD', 'draftmill:workers', seen, worker)
  redis.call('ZREMRANGEBYSCORE', 'draftmill:workers', '-inf', NOW / 1000 - kept)
  redis.call('HSET', rq, unpack(ARGV, known + 1, report - 1))
  redis.call('EXPIRE', rq, dead_after)
  redis.call('SADD', 'rq:workers', rq)
  redis.call('SADD', 'rq:workers:' .. queue, rq)
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue) -- else `rq info` shows no worker
end
return { seen, shortest, redis.call('HMGET', 'draftmill:fleet', unpack(ARGV, 10, known - 1)) }
