-- Ends the jobs of a cancelled batch that do not run, a stretch at a time; of no other batch. Keys: see record.lua.
-- Running jobs end when their worker next renews their leases; those whose lease has expired end here.
--   ARGV[3]  batch   ARGV[4]  where to go on in its open jobs, 0 at first   ARGV[5]  about how many to look at
-- Returns {jobs ended, where to go on, 0 at the end}. What was not submitted yet no longer counts as a line.

local batch = ARGV[3]
local key, opened = 'draftmill:batch:' .. batch, 'draftmill:open:' .. batch
local queues = queues_of(batch)
if #queues == 0 or not cancelled({ batch = batch }) then return { 0, '0' } end
redis.call('HSET', key, 'total', redis.call('HLEN', opened) + redis.call('BITCOUNT', 'draftmill:ended:' .. batch))
for _, queue in ipairs(queues) do redis.call('DEL', 'rq:queue:' .. queue) end
redis.call('UNLINK', 'draftmill:rest:' .. batch)

local ended = 0
local found = redis.call('HSCAN', opened, ARGV[4], 'COUNT', ARGV[5])
for i = 1, #found[2], 2 do
  local job = read_job(found[2][i], batch) or read_ghost(found[2][i], batch)
  local expires = leased(job)
  if is_open(job) and (not expires or expires <= NOW) then
    record_cancelled(job)
    ended = ended + 1
  end
end
ended_in[batch] = true
return { ended, found[1] }
