-- What every script shares: reading a job, giving up its lease, and recording its one outcome.
-- This file stands in front of each other script of the queue; cron.lua, about schedules, stands alone.
--
-- RQ's own keys. Each batch has a queue of its own, `draftmill.<pair>.<priority>.<batch>`; with the batch go its keys.
--   rq:queues                      set     the keys of all queues; a queue without a batch is forgotten by reap.lua
--   rq:queue:<queue>               list    ids of queued jobs, the head is claimed first; an empty list is no key
--   rq:job:<job>                   hash    RQ's fields of a job, and ours. Kept while the job is queued or runs, then
--                                          JOB_TTL seconds:
--     draftmill_batch                      batch of the job
--     draftmill_custom_id                  its line's custom_id
--     draftmill_n                          its line number in the dataset
--     draftmill_keep                       JSON object that its result hands back, or absent
--     draftmill_retried                    1 if an earlier failure of it was taken back
--     draftmill_enqueued                   Redis TIME in ms when it was last queued
--     draftmill_lease                      token of the last lease, `<worker>.<number>`
--     draftmill_leases                     how many leases were given and not handed back
--   rq:wip:<queue>                 zset    `<job>:<token>` of running jobs; the score is ten years ahead, because RQ's
--                                          own clean-up takes no lock and must never touch them
--   rq:execution:<job>:<token>     hash    RQ's record of a running job; goes with the lease
--   rq:worker:<worker>             hash    RQ's record of a worker; 60 s after its last heartbeat it expires
--   rq:worker:<worker>:executions  set     `<job>:<token>` of what a worker runs; expires after TTL
--   rq:finished:<queue>, rq:failed:<queue>, rq:canceled:<queue>   zset   job -> expiry, Unix seconds; with the batch
-- Keys of the project
--   draftmill:batches              zset    batch -> Unix seconds of its submission; forgotten by reap.lua
--   draftmill:batch:<batch>        hash    what a batch is, and its counters. Its owner is who submitted it: `draftmill
--                                          cancel` and `draftmill forget` end it. Complete, it expires after TTL
--   draftmill:done:<batch>         hash    job -> outcome; the done marker. Goes when the results are collected
--   draftmill:failures:<batch>     hash    job that could be retried -> `<outcome> <entry>`: how it ended without a
--                                          completion, and where that stands in the results. Stays with the batch
--   draftmill:results:<batch>      stream  one entry per line with an outcome: `line`, the JSON output line, and `n`;
--                                          a failure has `job`, and counts while draftmill:failures names its entry.
--                                          Goes when it is collected
--   draftmill:failed               stream  the latest failures of all batches, for people to read: `batch`, `custom_id`,
--                                          `worker`, `reason`. A day after the last one it expires
--   draftmill:turns:<pair>         zset    queue that has jobs -> when its next one is due, in virtual time
--   draftmill:leases               zset    running job -> lease expiry, Redis TIME in ms
--   draftmill:later                zset    job that is to be tried again -> when, Redis TIME in ms
--   draftmill:running              hash    user -> how many of that user's jobs run; no field is 0
--   draftmill:limits               hash    user, or `*` for all others -> most jobs that may run; `draftmill limit`
--   draftmill:workers              zset    worker -> its last heartbeat, Redis TIME in seconds
--   draftmill:worker:<worker>      hash    what a worker reports of itself, see wire.py; expires a day after its end
--   draftmill:fleet                hash    what operators ask of the fleet, see wire.py; `draftmill workers`
--   draftmill:stale                string  how many commits came too late and were dropped; one number, for ever
--
-- The first two arguments are the same everywhere:
--   ARGV[1]  the caller's time as RQ writes it, for display only
--   ARGV[2]  TTL: seconds that a complete batch is kept

local AT, TTL = ARGV[1], tonumber(ARGV[2])
local TEN_YEARS, JOB_TTL = 315360000, 3600

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local NOW = now_ms()

-- A job as a table, or nil if its hash is gone or is no hash.
local function read_job(id)
  local field = redis.pcall('HMGET', 'rq:job:' .. id, 'data', 'origin', 'draftmill_batch', 'draftmill_custom_id',
    'draftmill_lease', 'draftmill_leases', 'worker_name', 'draftmill_enqueued', 'status', 'draftmill_n',
    'draftmill_keep', 'draftmill_retried')
  if not field[1] then return nil end
  return {
    id = id, key = 'rq:job:' .. id, data = field[1], queue = field[2] or '', batch = field[3] or '',
    custom_id = field[4] or '', token = field[5] or '', leases = tonumber(field[6]) or 0, worker = field[7] or '',
    enqueued = tonumber(field[8]) or NOW, status = field[9] or '', n = field[10] or '0', keep = field[11] or '',
    retried = field[12],
  }
end

local function done(job)
  return job.batch ~= '' and redis.call('HGET', 'draftmill:done:' .. job.batch, job.id)
end

local function cancelled(job)
  return job.batch ~= '' and redis.call('HEXISTS', 'draftmill:batch:' .. job.batch, 'cancelled_at') == 1
end

local function leased(job)
  return redis.call('ZSCORE', 'draftmill:leases', job.id)
end

-- Who submitted a batch.
local function user_of(batch)
  return redis.call('HGET', 'draftmill:batch:' .. batch, 'user') or ''
end

-- Counts one job of a batch that begins (1) or ceases (-1) to run.
local function count_running(batch, by)
  if batch == '' then return end
  redis.call('HINCRBY', 'draftmill:batch:' .. batch, 'running', by)
  local user = user_of(batch)
  if redis.call('HINCRBY', 'draftmill:running', user, by) <= 0 then redis.call('HDEL', 'draftmill:running', user) end
end

-- Takes the lease away, whoever holds it; true if there was one.
local function drop_lease(job)
  if redis.call('ZREM', 'draftmill:leases', job.id) == 0 then return false end
  local execution = job.id .. ':' .. job.token
  redis.call('ZREM', 'rq:wip:' .. job.queue, execution)
  redis.call('DEL', 'rq:execution:' .. execution)
  redis.call('SREM', 'rq:worker:' .. job.worker .. ':executions', execution)
  count_running(job.batch, -1)
  return true
end

-- What a job of a priority costs its batch; claim.lua says how batches take turns.
local COST = { high = 1, normal = 16, low = 256 }

-- Lets a queue that has jobs take turns; its first job comes due after the job that is next.
local function take_turns(queue)
  local pair, priority = string.match(queue, '^draftmill%.(.+)%.(%a+)%.[^.]+$')
  if not pair then return end
  local turns = 'draftmill:turns:' .. pair
  local next = redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES')[2] or 0
  redis.call('ZADD', turns, 'NX', next + (COST[priority] or COST.low), queue)
end

-- Puts a job whose lease was dropped at the front of its queue.
local function requeue(job)
  redis.call('HSET', job.key, 'status', 'queued', 'started_at', '', 'worker_name', '', 'draftmill_enqueued', NOW)
  local alone = redis.call('LPUSH', 'rq:queue:' .. job.queue, job.id) == 1
  if alone and job.batch ~= '' then redis.call('HSET', 'draftmill:batch:' .. job.batch, 'waiting_since', NOW) end
  take_turns(job.queue)
end

local STATUS = { done = 'finished', failed = 'failed', cancelled = 'canceled' }

-- Lets the keys of a batch expire once each of its lines has an outcome.
local function expire_if_complete(batch, queue)
  local key = 'draftmill:batch:' .. batch
  local count = redis.call('HMGET', key, 'total', 'done', 'failed', 'cancelled')
  local ended = (tonumber(count[2]) or 0) + (tonumber(count[3]) or 0) + (tonumber(count[4]) or 0)
  if ended < (tonumber(count[1]) or 0) then return end
  redis.call('EXPIRE', key, TTL)
  for _, kind in ipairs({ 'done', 'failures', 'results' }) do
    redis.call('EXPIRE', 'draftmill:' .. kind .. ':' .. batch, TTL)
  end
  for _, status in pairs(STATUS) do redis.call('EXPIRE', 'rq:' .. status .. ':' .. queue, TTL) end
end

-- Ends a job: done marker, result line, counters, RQ's registries, expiry. The caller has checked that it has no outcome.
local function record(job, outcome, line, prompt_tokens, completion_tokens)
  drop_lease(job)
  redis.call('ZREM', 'draftmill:later', job.id)
  redis.call('HSET', job.key, 'status', STATUS[outcome], 'ended_at', AT)
  redis.call('EXPIRE', job.key, JOB_TTL)
  local registry, seconds = 'rq:' .. STATUS[outcome] .. ':' .. job.queue, math.floor(NOW / 1000)
  redis.call('ZREMRANGEBYSCORE', registry, '-inf', seconds)
  redis.call('ZADD', registry, seconds + JOB_TTL, job.id)
  if job.batch == '' then
    redis.call('EXPIRE', registry, JOB_TTL)
    return
  end
  local batch = 'draftmill:batch:' .. job.batch
  redis.call('HSET', 'draftmill:done:' .. job.batch, job.id, outcome)
  local results = 'draftmill:results:' .. job.batch
  if outcome == 'done' or cancelled(job) then
    redis.call('XADD', results, '*', 'line', line, 'n', job.n)
  else
    local entry = redis.call('XADD', results, '*', 'line', line, 'n', job.n, 'job', job.id)
    redis.call('HSET', 'draftmill:failures:' .. job.batch, job.id, outcome .. ' ' .. entry)
  end
  redis.call('HINCRBY', batch, outcome, 1)
  redis.call('HINCRBY', batch, 'prompt_tokens', prompt_tokens or 0)
  redis.call('HINCRBY', batch, 'completion_tokens', completion_tokens or 0)
  expire_if_complete(job.batch, job.queue)
end

-- The output line of a job that ends without a completion.
local function error_line(job, code, message)
  return '{"id":"batch_req_' .. job.id .. '","custom_id":' .. cjson.encode(job.custom_id)
    .. ',"response":null,"error":{"code":' .. cjson.encode(code) .. ',"message":' .. cjson.encode(message) .. '}'
    .. (job.keep ~= '' and ',"keep":' .. job.keep or '') .. '}'
end

-- Says why a job ended that `record` has ended; if it failed, among the latest failures, too.
local MOST_FAILURES, DAY = 100, 86400
local function explain(job, outcome, worker, reason)
  redis.call('HSET', job.key, 'exc_info', reason)
  if outcome ~= 'failed' then return end
  redis.call('XADD', 'draftmill:failed', 'MAXLEN', MOST_FAILURES, '*', 'batch', job.batch, 'custom_id', job.custom_id,
    'worker', worker, 'reason', reason)
  redis.call('EXPIRE', 'draftmill:failed', DAY)
end

local function record_cancelled(job)
  record(job, 'cancelled', error_line(job, 'batch_cancelled', 'the batch was cancelled before this request finished'))
end

