-- Looks for jobs of a batch that are open and nowhere to be found: ends those that RQ's tools cancelled or deleted, and
-- queues again those that only their queue's list has lost. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4…]  jobs
-- Returns {requeued, ended because RQ's tools took them, open jobs of the batch that are still missing}.

local batch = ARGV[3]
local queue = redis.call('HGET', 'draftmill:batch:' .. batch, 'queue')
if not queue then return { 0, 0, 0 } end
local list, requeued, taken = 'rq:queue:' .. queue, 0, 0
for i = 4, #ARGV do
  local job = read_job(ARGV[i]) or read_ghost(ARGV[i])
  if job and redis.call('HEXISTS', 'draftmill:open:' .. batch, job.id) == 1 and not leased(job)
    and redis.call('SISMEMBER', 'draftmill:aside:' .. batch, job.id) == 0
    and not redis.call('LPOS', list, job.id) then
    if job.gone or job.status == 'canceled' then
      record_taken(job)
      taken = taken + 1
    else
      redis.call('RPUSH', list, job.id)
      requeued = requeued + 1
    end
  end
end
if requeued > 0 then
  take_turns(batch)
  ring(pair_of(queue), requeued)
end
return { requeued, taken, redis.call('HLEN', 'draftmill:open:' .. batch) - count_known(batch, queue) }
