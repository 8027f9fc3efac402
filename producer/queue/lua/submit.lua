-- Queues the jobs of a chunk that have no outcome yet and are not queued already. Keys: see record.lua.
--   ARGV[3]  batch   ARGV[4]  1 to run jobs again that ended without a completion
--   ARGV[5]  1 to run jobs again whose results were handed over: the caller lacks them
--   ARGV[6]  text that the reason of those that failed must have in it
--   ARGV[7]  queue of these jobs, one of the batch's   ARGV[8]  number of jobs
--   then for each job: id, custom_id, line number, size in tokens, number of strings that follow, and RQ's hash as
--   field, value, …
-- Returns {new, already queued or running, already ended, of the new ones those that had failed}. A batch that was
-- cancelled, or that is not there, takes no jobs.

local batch, again, missing, reason, queue = ARGV[3], ARGV[4] == '1', ARGV[5] == '1', ARGV[6], ARGV[7]
local key, failures, results = 'draftmill:batch:' .. batch, 'draftmill:failures:' .. batch, 'draftmill:results:' .. batch
local opened, ended_bits, handed = 'draftmill:open:' .. batch, 'draftmill:ended:' .. batch, 'draftmill:handed:' .. batch
local about = redis.call('HMGET', key, 'cancelled_at', 'generation')
if about[1] or not about[2] then return { 0, 0, 0, 0 } end
local generation = about[2]
-- It says what is there already. But Redis, its memory full, refuses it, and nothing that a script adds after a change.
redis.call('HSET', key, 'generation', generation)
local new, waiting, ended, retried = 0, 0, 0, 0
local anew
local fresh = {}
local at = 9

-- Takes an outcome back: the line is as if it had never run, in a generation of its own.
local function take_back(id, n, failure)
  anew = anew or redis.call('INCR', 'draftmill:generation')
  redis.call('SETBIT', ended_bits, n, 0)
  redis.call('SETBIT', handed, n, 0)
  if not failure then return end
  local outcome, entry = string.match(failure, '^(%a+) %d+ (%S+)')
  redis.call('HDEL', failures, id)
  redis.call('XDEL', results, entry)
  redis.call('HINCRBY', key, outcome, -1)
  retried = retried + 1
end

for _ = 1, tonumber(ARGV[8]) do
  local id, custom_id, n, size, width = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local first = at + 5
  at = first + width
  local job = 'rq:job:' .. id
  local has_ended = redis.call('GETBIT', ended_bits, n) == 1
  local failure = has_ended and redis.call('HGET', failures, id)
  local is_back = has_ended
    and ((again and failure and failed_for(failure, reason)) or (missing and redis.call('GETBIT', handed, n) == 1))
  if fresh[id] or redis.call('HEXISTS', opened, id) == 1 then
    waiting = waiting + 1
  elseif has_ended and not is_back then
    ended = ended + 1
  else
    if is_back then take_back(id, n, failure) end
    new = new + 1
    redis.call('DEL', job)
    local queued = table.concat({ is_back and anew or generation, size, NOW }, ' ')
    redis.call('HSET', job, 'queued', queued, unpack(ARGV, first, first + width - 1))
    fresh[id] = true
    gather('HSET', opened, id, n .. ' ' .. custom_id)
    gather('RPUSH', 'rq:queue:' .. queue, id)
  end
end

if anew then
  redis.call('HDEL', key, 'collected_at')
  redis.call('PERSIST', key)
  for _, kind in ipairs(KINDS) do redis.call('PERSIST', 'draftmill:' .. kind .. ':' .. batch) end
end
if new > 0 then
  if redis.call('EXISTS', 'rq:queue:' .. queue) == 0 then note_wait(batch, queue, NOW) end
  write() -- a queue must be there to take turns
  redis.call('ZADD', UNENDED, 'NX', NOW, batch)
  redis.call('SADD', 'rq:queues', 'rq:queue:' .. queue)
  take_turns(batch)
  ring(pair_of(queue), new)
end
return { new, waiting, ended, retried }
