-- Drops a chunk of lines that a feeder has queued, and all of a batch that takes no lines any more. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  field of the chunk, or '' for none   ARGV[5]  SHA-1 of the chunk
-- A chunk that was replaced meanwhile stays: it asks for more.

local batch, field = ARGV[3], ARGV[4]
local rest = 'draftmill:rest:' .. batch
local about = redis.call('HMGET', 'draftmill:batch:' .. batch, 'cancelled_at', 'generation')
if about[1] or not about[2] then redis.call('UNLINK', rest) end
local chunk = redis.call('HGET', rest, field)
if chunk and redis.sha1hex(chunk) == ARGV[5] then
  redis.call('HDEL', rest, field)
  redis.call('ZINCRBY', 'draftmill:rests', -#chunk, batch)
end
if redis.call('EXISTS', rest) == 0 then redis.call('ZREM', 'draftmill:rests', batch) end
