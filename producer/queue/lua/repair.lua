-- Looks for jobs of a batch that are open and nowhere to be found: ends those that RQ's tools cancelled or deleted, and
-- queues again those that only their queue's list has lost. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4…]  jobs
-- Returns {requeued, ended because RQ's tools took them, open jobs of the batch that are still missing}.

local batch = ARGV[3]
local queues, own, requeued, taken = queues_of(batch), {}, 0, 0
for _, queue in ipairs(queues) do own[queue] = true end

local function is_lost(job)
  if not is_open(job) or leased(job) or redis.call('SISMEMBER', 'draftmill:aside:' .. batch, job.id) == 1 then
    return false
  end
  for _, queue in ipairs(queues) do
    if redis.call('LPOS', 'rq:queue:' .. queue, job.id) then return false end
  end
  return #queues > 0
end

for i = 4, #ARGV do
  local job = read_job(ARGV[i], batch) or read_ghost(ARGV[i], batch)
  if job and is_lost(job) then
    if job.gone or job.status == 'canceled' then
      record_taken(job)
      taken = taken + 1
    else
      local queue = own[job.queue] and job.queue or queues[1]
      redis.call('RPUSH', 'rq:queue:' .. queue, job.id)
      ring(pair_of(queue), 1)
      requeued = requeued + 1
    end
  end
end
if requeued > 0 then take_turns(batch) end
write() -- it is counted now
return { requeued, taken, redis.call('HLEN', 'draftmill:open:' .. batch) - count_known(batch, queues) }
