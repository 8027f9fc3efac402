-- Marks a batch as cancelled and ends its jobs within one stretch of a queue. Keys: see record.lua.
-- Running jobs end when their worker next renews their leases; those whose lease has expired end here.
--   ARGV[3]  batch   ARGV[4]  queue   ARGV[5]  where the stretch begins, from 0   ARGV[6]  its length
-- Returns {jobs ended, where the next stretch begins, -1 after the last}.

local batch, queue = ARGV[3], ARGV[4]
local start, length = tonumber(ARGV[5]), tonumber(ARGV[6])
local list = 'rq:queue:' .. queue
local GONE = 'draftmill-cancelled'
redis.call('HSETNX', 'draftmill:batch:' .. batch, 'cancelled_at', math.floor(NOW / 1000))

local ended = 0
local function finish(id)
  local job = read_job(id)
  if not job or job.batch ~= batch then return false end
  if not done(job) then
    record_cancelled(job)
    ended = ended + 1
  end
  return true
end

if start == 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'draftmill:leases:' .. queue, '-inf', NOW)) do finish(id) end
end

local ids = redis.call('LRANGE', list, start, start + length - 1)
local removed = 0
for offset, id in ipairs(ids) do
  if string.sub(id, 1, #batch + 1) == batch .. '-' and finish(id) then
    redis.call('LSET', list, start + offset - 1, GONE)
    removed = removed + 1
  end
end
if removed > 0 then redis.call('LREM', list, 0, GONE) end

if #ids < length then return { ended, -1 } end
return { ended, start + length - removed }
