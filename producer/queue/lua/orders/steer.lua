-- Pauses a batch, lets it go on, or gives it another priority. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  'pause' | 'resume' | 'priority'   ARGV[5]  the priority, or ''
-- Returns 1, or 0 if nothing of the batch is to be run. A batch that is paused stays among those that take turns until
-- claim.lua meets it there.

local batch, order = ARGV[3], ARGV[4]
local key = 'draftmill:batch:' .. batch
if redis.call('HEXISTS', key, 'generation') == 0 or cancelled({ batch = batch }) or complete(batch) then return 0 end
if order == 'pause' then
  redis.call('HSETNX', key, 'paused_at', NOW / 1000)
  return 1
end
if order == 'resume' then
  redis.call('HDEL', key, 'paused_at')
else
  redis.call('HSET', key, 'priority', ARGV[5])
end
take_turns(batch)
for _, queue in ipairs(queues_of(batch)) do ring(pair_of(queue), math.huge) end
return 1
