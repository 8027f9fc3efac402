-- Keeps a chunk of lines for which the queue has no room, until a feeder queues them. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  field of the chunk, `<its number> <number of lines>`   ARGV[5]  the chunk
--   ARGV[6]  1 if lines that failed are to run again   ARGV[7]  text that the reason of these must have in it
--   ARGV[8]  most bytes of the chunks of all batches
--   then for each line: its job, its number
-- Returns 'kept', 'known' if no line of it is to be queued, 'full', or 'gone' if the batch takes no lines; and how many of
-- the lines are queued or run. A chunk that is kept already is replaced.

local batch, field, chunk, again, most = ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1', tonumber(ARGV[8])
local about = redis.call('HMGET', 'draftmill:batch:' .. batch, 'cancelled_at', 'generation')
if about[1] or not about[2] then return { 'gone', 0 } end

local opened, is_known = 0, true
for i = 9, #ARGV, 2 do
  local job, n = ARGV[i], ARGV[i + 1]
  if redis.call('HEXISTS', 'draftmill:open:' .. batch, job) == 1 then
    opened = opened + 1
  elseif redis.call('GETBIT', 'draftmill:ended:' .. batch, n) == 0 then
    is_known = false
  elseif again then
    local failure = redis.call('HGET', 'draftmill:failures:' .. batch, job)
    if failure and failed_for(failure, ARGV[7]) then is_known = false end
  end
end
if is_known then return { 'known', opened } end

local rest, more = 'draftmill:rest:' .. batch, #chunk
more = more - redis.call('HSTRLEN', rest, field)
local all = redis.call('ZRANGE', 'draftmill:rests', 0, -1, 'WITHSCORES')
local bytes = more
for i = 1, #all, 2 do
  if redis.call('EXISTS', 'draftmill:rest:' .. all[i]) == 1 then
    bytes = bytes + all[i + 1]
  else
    redis.call('ZREM', 'draftmill:rests', all[i]) -- the batch was cancelled, forgotten or expired
  end
end
if bytes > most then return { 'full', opened } end
redis.call('HSET', rest, field, chunk)
redis.call('ZINCRBY', 'draftmill:rests', more, batch)
return { 'kept', opened }
