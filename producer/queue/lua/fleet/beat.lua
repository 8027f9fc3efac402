-- Keeps what a worker reports, for us and for RQ, and tells it what operators ask. Keys: see record.lua.
--   ARGV[3]   seconds that a report is kept after the last one
--   ARGV[4]   worker   ARGV[5]  queue under which RQ lists it   ARGV[6]  seconds until it counts as dead for RQ
--   ARGV[7]   how many fields of RQ's hash follow, then these: field, value, …
--   then      how many fields of draftmill:fleet follow, then these, then the report: field, value, …
-- Returns the values of those fields.

local kept, worker, queue = tonumber(ARGV[3]), ARGV[4], ARGV[5]
local asked = 8 + 2 * tonumber(ARGV[7])
local report = asked + 1 + tonumber(ARGV[asked])

local rq = 'rq:worker:' .. worker
redis.call('HSET', rq, unpack(ARGV, 8, asked - 1))
redis.call('EXPIRE', rq, ARGV[6])
redis.call('SADD', 'rq:workers', rq)
redis.call('SADD', 'rq:workers:' .. queue, rq)
redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue) -- else `rq info` shows no worker

local key = 'draftmill:worker:' .. worker
redis.call('HSETNX', key, 'started', NOW / 1000)
redis.call('HSET', key, 'seen', NOW / 1000, unpack(ARGV, report))
redis.call('EXPIRE', key, kept)
redis.call('ZADD', 'draftmill:workers', NOW / 1000, worker)
redis.call('ZREMRANGEBYSCORE', 'draftmill:workers', '-inf', NOW / 1000 - kept)
return redis.call('HMGET', 'draftmill:fleet', unpack(ARGV, asked + 1, report - 1))
