-- Registers a batch, or says anew what it is: its counters, its user and its first submission stay. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  the caller's Unix time   then field, value, … of its hash, `total` and `user` first
-- Another priority holds for what is queued already. A batch that was cancelled stays as it is.

local batch, user = ARGV[3], ARGV[8]
local key = 'draftmill:batch:' .. batch
if redis.call('HEXISTS', key, 'cancelled_at') == 1 then return end
if redis.call('HEXISTS', key, 'generation') == 0 then
  redis.call('HSET', key, 'generation', redis.call('INCR', 'draftmill:generation'), 'wire', WIRE, 'failed', 0,
    'cancelled', 0) -- an earlier wire may have counted here
end
redis.call('HSETNX', key, 'created', ARGV[4])
redis.call('HSETNX', key, 'user', user)
redis.call('HSET', key, 'total', ARGV[6], unpack(ARGV, 9))
redis.call('ZADD', 'draftmill:batches', 'NX', ARGV[4], batch)
if complete(batch) then return end
redis.call('ZADD', UNENDED, 'NX', NOW, batch)
take_turns(batch)
