-- Queues the jobs of a chunk that have no outcome yet and are not queued already. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  queue   ARGV[5]  1 to run jobs again that ended without a completion
--   ARGV[6]  number of jobs
--   then for each job: id, custom_id, line number, number of strings that follow, and RQ's hash as field, value, …
-- Returns {new, already queued or running, already ended, of the new ones those that had failed}. A cancelled batch
-- takes no more jobs. One whose results were collected has lost its done markers: only its failures can run again.

local batch, queue, again = ARGV[3], ARGV[4], ARGV[5] == '1'
local key, failures = 'draftmill:batch:' .. batch, 'draftmill:failures:' .. batch
if redis.call('HEXISTS', key, 'cancelled_at') == 1 then return { 0, 0, 0, 0 } end
local collected = redis.call('HEXISTS', key, 'collected_at') == 1
local new, waiting, ended, retried = 0, 0, 0, 0
local at = 7

-- Takes a failure back: the job is as if it had never been submitted. The failure's entry in the results stays, so that
-- readers keep their place, but no longer counts.
local function take_back(id, failure)
  redis.call('HDEL', failures, id)
  redis.call('HDEL', 'draftmill:done:' .. batch, id)
  redis.call('DEL', 'rq:job:' .. id)
  redis.call('HINCRBY', key, string.match(failure, '^%a+'), -1)
  redis.call('HINCRBY', key, 'submitted', -1)
  retried = retried + 1
end

for _ = 1, tonumber(ARGV[6]) do
  local id, custom_id, n, width = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local first = at + 4
  at = first + width
  local job = 'rq:job:' .. id
  local failure = again and redis.call('HGET', failures, id)
  if failure then take_back(id, failure) end
  if redis.call('HEXISTS', 'draftmill:done:' .. batch, id) == 1 then
    ended = ended + 1
  elseif redis.call('EXISTS', job) == 1 then
    waiting = waiting + 1
  elseif collected and not failure then
    ended = ended + 1
  else
    new = new + 1
    redis.call('HINCRBY', key, 'submitted', 1)
    redis.call('HSET', job, 'draftmill_batch', batch, 'draftmill_custom_id', custom_id, 'draftmill_n', n,
      'draftmill_enqueued', NOW, unpack(ARGV, first, first + width - 1))
    if failure then redis.call('HSET', job, 'draftmill_retried', 1) end
    if redis.call('RPUSH', 'rq:queue:' .. queue, id) == 1 then redis.call('HSET', key, 'waiting_since', NOW) end
  end
end

if retried > 0 then
  redis.call('HINCRBY', key, 'retries', 1)
  redis.call('PERSIST', key)
  for _, kind in ipairs({ 'done', 'failures', 'results' }) do
    redis.call('PERSIST', 'draftmill:' .. kind .. ':' .. batch)
  end
end
if new > 0 then
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
  take_turns(queue)
end
return { new, waiting, ended, retried }
