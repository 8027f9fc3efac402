-- Drops all that Redis holds of a complete batch, a stretch of its results at a time. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  most results to drop
-- Returns 'more', 'forgotten', or 'open' if the batch is not complete: then nothing was dropped.

local batch, most = ARGV[3], ARGV[4]
local key, results = 'draftmill:batch:' .. batch, 'draftmill:results:' .. batch
if redis.call('EXISTS', key) == 1 and not complete(batch) then return 'open' end
local entries = redis.call('XRANGE', results, '-', '+', 'COUNT', most)
for _, entry in ipairs(entries) do
  redis.call('XDEL', results, entry[1])
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'job' then redis.call('UNLINK', 'rq:job:' .. entry[2][i + 1]) end
  end
end
if #entries == tonumber(most) then return 'more' end

for _, queue in ipairs(queues_of(batch)) do
  for _, status in pairs(STATUS) do redis.call('UNLINK', 'rq:' .. status .. ':' .. queue) end
  redis.call('SREM', 'rq:queues', 'rq:queue:' .. queue)
end
for _, kind in ipairs(KINDS) do redis.call('UNLINK', 'draftmill:' .. kind .. ':' .. batch) end
redis.call('UNLINK', key, 'draftmill:holder:' .. batch, 'draftmill:done:' .. batch) -- done: of the first wire
redis.call('ZREM', 'draftmill:batches', batch)
redis.call('ZREM', UNENDED, batch)
for _, entry in ipairs(redis.call('XRANGE', 'draftmill:failed', '-', '+')) do
  if entry[2][2] == batch then redis.call('XDEL', 'draftmill:failed', entry[1]) end
end
return 'forgotten'
