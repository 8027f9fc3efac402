-- Ends queued jobs whose lines a file has already, as if their results had been acknowledged. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  1 if the batch no longer waits for lines that were not submitted
--   then for each job: its id, and 'done' | 'failed': what the file has of it
-- A job that is leased runs on. Repeating is harmless.

local batch = ARGV[3]
local key, results = 'draftmill:batch:' .. batch, 'draftmill:results:' .. batch
local opened, ended = 'draftmill:open:' .. batch, 'draftmill:ended:' .. batch
local queues = queues_of(batch)
if #queues == 0 then return end
for i = 5, #ARGV, 2 do
  local job = read_job(ARGV[i], batch) or read_ghost(ARGV[i], batch)
  if job and is_open(job) and not leased(job) then
    for _, queue in ipairs(queues) do redis.call('LREM', 'rq:queue:' .. queue, 1, job.id) end
    take_up(job)
    redis.call('UNLINK', 'rq:job:' .. job.id)
    redis.call('HDEL', opened, job.id)
    redis.call('SETBIT', ended, job.n, 1)
    redis.call('SETBIT', 'draftmill:handed:' .. batch, job.n, 1)
    if ARGV[i + 1] == 'failed' then
      redis.call('HINCRBY', key, 'failed', 1)
      redis.call('HSET', 'draftmill:failures:' .. batch, job.id, 'failed ' .. job.n .. ' 0-0')
    end
  end
end
if ARGV[4] == '1' then
  redis.call('HSET', key, 'total', redis.call('HLEN', opened) + redis.call('BITCOUNT', ended))
  redis.call('UNLINK', 'draftmill:rest:' .. batch)
end
expire_if_complete(batch)
if complete(batch) and redis.call('XLEN', results) == 0 then redis.call('HSETNX', key, 'collected_at', NOW / 1000) end
