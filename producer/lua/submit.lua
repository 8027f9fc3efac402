-- Queues the jobs of a chunk that have no outcome yet and are not queued already. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  queue   ARGV[5]  number of jobs
--   then for each job: id, custom_id, line number, number of strings that follow, and RQ's hash as field, value, …
-- Returns {new, already queued or running, already ended}. A cancelled batch takes no more jobs.

local batch, queue = ARGV[3], ARGV[4]
if redis.call('HEXISTS', 'draftmill:batch:' .. batch, 'cancelled_at') == 1 then return { 0, 0, 0 } end
local new, waiting, ended = 0, 0, 0
local at = 6

for _ = 1, tonumber(ARGV[5]) do
  local id, custom_id, n, width = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local first = at + 4
  at = first + width
  local key = 'rq:job:' .. id
  if redis.call('HEXISTS', 'draftmill:done:' .. batch, id) == 1 then
    ended = ended + 1
  elseif redis.call('EXISTS', key) == 1 then
    waiting = waiting + 1
  else
    new = new + 1
    redis.call('HINCRBY', 'draftmill:batch:' .. batch, 'submitted', 1)
    redis.call('HSET', key, 'draftmill_batch', batch, 'draftmill_custom_id', custom_id, 'draftmill_n', n,
      'draftmill_enqueued', NOW, unpack(ARGV, first, first + width - 1))
    redis.call('RPUSH', 'rq:queue:' .. queue, id)
  end
end

if new > 0 then
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
  take_turns(queue)
end
return { new, waiting, ended }
