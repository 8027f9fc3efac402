-- Drops outcomes that a reader has on its disk. Keys: see record.lua.
--   ARGV[3]  batch   then for each result: its entry, its line number, its job or ''
-- A line that was queued again meanwhile keeps its new job. Repeating is harmless; nothing is noted of a batch that
-- Redis has lost.

local batch = ARGV[3]
local key, results = 'draftmill:batch:' .. batch, 'draftmill:results:' .. batch
if redis.call('EXISTS', key) == 0 then return end
local queues = queues_of(batch)
for i = 4, #ARGV, 3 do
  local entry, n, job = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  gather('XDEL', results, entry)
  if redis.call('HEXISTS', 'draftmill:open:' .. batch, job) == 0 then
    redis.call('UNLINK', 'rq:job:' .. job)
    for _, queue in ipairs(queues) do
      for _, status in pairs(STATUS) do gather('ZREM', 'rq:' .. status .. ':' .. queue, job) end
    end
    if redis.call('GETBIT', 'draftmill:ended:' .. batch, n) == 1 then
      gather('BITFIELD', 'draftmill:handed:' .. batch, 'SET', 'u1', n, 1)
    end
  end
end
write() -- they are counted now
if not complete(batch) then return end
redis.call('EXPIRE', 'draftmill:handed:' .. batch, kept_for(batch))
if redis.call('XLEN', results) == 0 then
  redis.call('DEL', results)
  redis.call('HSETNX', key, 'collected_at', NOW / 1000)
end
