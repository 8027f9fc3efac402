-- Ends the jobs of a cancelled batch that do not run, a stretch at a time. Keys: see record.lua.
-- Running jobs end when their worker next renews their leases; those whose lease has expired end here.
--   ARGV[3]  batch   ARGV[4]  one of its queues   ARGV[5]  most queued jobs to end
-- Returns {jobs ended, 1 if the queue may hold more}. What was not submitted yet no longer counts as a line.

local batch, queue, most = ARGV[3], ARGV[4], tonumber(ARGV[5])
local key = 'draftmill:batch:' .. batch
redis.call('HSET', key, 'total', redis.call('HGET', key, 'submitted') or 0)

local ended = 0
local function finish(id)
  local job = read_job(id)
  if job and job.batch == batch and not done(job) then
    record_cancelled(job)
    ended = ended + 1
  end
end

local ids = redis.call('LPOP', 'rq:queue:' .. queue, most) or {}
for _, id in ipairs(ids) do finish(id) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'draftmill:leases', '-inf', NOW)) do finish(id) end
for _, id in ipairs(redis.call('ZRANGE', 'draftmill:later', 0, -1)) do finish(id) end
expire_if_complete(batch, queue)
return { ended, #ids == most and 1 or 0 }
