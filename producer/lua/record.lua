-- What every script shares: reading a job, giving up its lease, and recording its one outcome.
-- This file stands in front of each other script of the project.
--
-- RQ's own keys
--   rq:queues                      set     the keys of all queues
--   rq:queue:<queue>               list    ids of queued jobs, the head is claimed first
--   rq:job:<job>                   hash    RQ's fields of a job, and ours:
--     draftmill_batch                      batch of the job
--     draftmill_custom_id                  its line's custom_id
--     draftmill_n                          its line number in the dataset
--     draftmill_enqueued                   Redis TIME in ms when it was last queued
--     draftmill_lease                      token of the last lease, `<worker>.<number>`
--     draftmill_leases                     how many leases were given and not handed back
--   rq:wip:<queue>                 zset    `<job>:<token>` of running jobs; the score is ten years ahead, because RQ's
--                                          own clean-up takes no lock and must never touch them
--   rq:execution:<job>:<token>     hash    RQ's record of a running job
--   rq:worker:<worker>             hash    RQ's record of a worker
--   rq:worker:<worker>:executions  set     `<job>:<token>` of what a worker runs
--   rq:finished:<queue>, rq:failed:<queue>, rq:canceled:<queue>   zset   job -> expiry, Unix seconds
-- Keys of the project
--   draftmill:leases:<queue>       zset    running job -> lease expiry, Redis TIME in ms
--   draftmill:batch:<batch>        hash    what a batch is, and its counters
--   draftmill:done:<batch>         hash    job -> outcome; the done marker
--   draftmill:results:<batch>      stream  one entry per line with an outcome: `line`, the JSON output line, and `n`
--   draftmill:stale                string  how many commits came too late and were dropped
--
-- The first two arguments are the same everywhere:
--   ARGV[1]  the caller's time as RQ writes it, for display only
--   ARGV[2]  seconds that an ended job and a complete batch are kept

local AT, TTL = ARGV[1], tonumber(ARGV[2])
local TEN_YEARS = 315360000

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local NOW = now_ms()

-- A job as a table, or nil if its hash is gone.
local function read_job(id)
  local field = redis.call('HMGET', 'rq:job:' .. id, 'data', 'origin', 'draftmill_batch', 'draftmill_custom_id',
    'draftmill_lease', 'draftmill_leases', 'worker_name', 'draftmill_enqueued', 'status', 'draftmill_n')
  if not field[1] then return nil end
  return {
    id = id, key = 'rq:job:' .. id, data = field[1], queue = field[2] or '', batch = field[3] or '',
    custom_id = field[4] or '', token = field[5] or '', leases = tonumber(field[6]) or 0, worker = field[7] or '',
    enqueued = tonumber(field[8]) or NOW, status = field[9] or '', n = field[10] or '0',
  }
end

local function done(job)
  return job.batch ~= '' and redis.call('HGET', 'draftmill:done:' .. job.batch, job.id)
end

local function cancelled(job)
  return job.batch ~= '' and redis.call('HEXISTS', 'draftmill:batch:' .. job.batch, 'cancelled_at') == 1
end

local function leased(job)
  return redis.call('ZSCORE', 'draftmill:leases:' .. job.queue, job.id)
end

-- Takes the lease away, whoever holds it; true if there was one.
local function drop_lease(job)
  if redis.call('ZREM', 'draftmill:leases:' .. job.queue, job.id) == 0 then return false end
  local execution = job.id .. ':' .. job.token
  redis.call('ZREM', 'rq:wip:' .. job.queue, execution)
  redis.call('DEL', 'rq:execution:' .. execution)
  redis.call('SREM', 'rq:worker:' .. job.worker .. ':executions', execution)
  if job.batch ~= '' then redis.call('HINCRBY', 'draftmill:batch:' .. job.batch, 'running', -1) end
  return true
end

-- Puts a job whose lease was dropped at the front of its queue.
local function requeue(job)
  redis.call('HSET', job.key, 'status', 'queued', 'started_at', '', 'worker_name', '', 'draftmill_enqueued', NOW)
  redis.call('LPUSH', 'rq:queue:' .. job.queue, job.id)
end

local STATUS = { done = 'finished', failed = 'failed', cancelled = 'canceled' }

-- Ends a job: done marker, result line, counters, RQ's registries, expiry. The caller has checked that it has no outcome.
local function record(job, outcome, line, prompt_tokens, completion_tokens)
  drop_lease(job)
  if job.batch ~= '' then
    local batch = 'draftmill:batch:' .. job.batch
    redis.call('HSET', 'draftmill:done:' .. job.batch, job.id, outcome)
    redis.call('XADD', 'draftmill:results:' .. job.batch, '*', 'line', line, 'n', job.n)
    redis.call('HINCRBY', batch, outcome, 1)
    redis.call('HINCRBY', batch, 'prompt_tokens', prompt_tokens or 0)
    redis.call('HINCRBY', batch, 'completion_tokens', completion_tokens or 0)
    local count = redis.call('HMGET', batch, 'total', 'done', 'failed', 'cancelled')
    local ended = (tonumber(count[2]) or 0) + (tonumber(count[3]) or 0) + (tonumber(count[4]) or 0)
    if ended >= (tonumber(count[1]) or 0) then
      for _, kind in ipairs({ 'batch', 'done', 'results' }) do
        redis.call('EXPIRE', 'draftmill:' .. kind .. ':' .. job.batch, TTL)
      end
    end
  end
  redis.call('HSET', job.key, 'status', STATUS[outcome], 'ended_at', AT)
  redis.call('EXPIRE', job.key, TTL)
  redis.call('ZADD', 'rq:' .. STATUS[outcome] .. ':' .. job.queue, math.floor(NOW / 1000) + TTL, job.id)
end

-- The output line of a job that ends without a completion.
local function error_line(job, code, message)
  return '{"id":"batch_req_' .. job.id .. '","custom_id":' .. cjson.encode(job.custom_id)
    .. ',"response":null,"error":{"code":' .. cjson.encode(code) .. ',"message":' .. cjson.encode(message) .. '}}'
end

local function record_cancelled(job)
  record(job, 'cancelled', error_line(job, 'batch_cancelled', 'the batch was cancelled before this request finished'))
end

