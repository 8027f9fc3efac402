-- Keeps what a worker reports, and tells it what operators ask. Keys: see record.lua.
--   ARGV[3]   seconds that a report is kept after the last one
--   ARGV[4]   worker
--   ARGV[5]   how many fields of draftmill:fleet follow, then these, then the report: field, value, …
-- Returns the values of those fields.

local kept, worker, count = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local key = 'draftmill:worker:' .. worker
if redis.call('EXISTS', key) == 0 then
  redis.call('HSET', key, 'started', NOW / 1000)
end
redis.call('HSET', key, 'seen', NOW / 1000, unpack(ARGV, 6 + count))
redis.call('EXPIRE', key, kept)
redis.call('ZADD', 'draftmill:workers', NOW / 1000, worker)
redis.call('ZREMRANGEBYSCORE', 'draftmill:workers', '-inf', NOW / 1000 - kept)
return redis.call('HMGET', 'draftmill:fleet', unpack(ARGV, 6, 5 + count))
