-- What scripts about jobs share: reading a job, where it lies, giving up its lease, and recording its one outcome.
-- This file stands in front of them, behind some constants, clock.lua, turns.lua and gather.lua; those about workers do
-- without it.
-- cron.lua, about schedules, stands alone. `<w>` is WIRE: workers of one wire never see the jobs of another.
--
-- RQ's own keys. Each batch has a queue of its own for each pair that its lines run on, `draftmill.<w>.<pair>:<batch>`;
-- with the batch go its keys.
--   rq:queues                      set     the keys of all queues; a queue without a batch is forgotten by reap.lua
--   rq:queue:<queue>               list    ids of queued jobs, the head is claimed first; an empty list is no key
--   rq:job:<job>                   hash    RQ's fields of a job, and ours. Kept while the job is open, then without its
--                                          body until its result is acknowledged, at most JOB_TTL seconds:
--     queued                               `<generation> <size> <when>`: that of its batch, or a new one if the line was
--                                          queued again; tokens that it may come to; Redis TIME in ms when it was last
--                                          queued
--     lease                                `<generation>.<number> <length>` of the last lease: its token, which is
--                                          `<worker>.<generation>.<number>`, and its length in ms
--     leases                               `<number> <mark>`: how many leases count; 1 if the last one does, because the job
--                                          was in a row under it, else 0
--     keep                                 JSON object that its result hands back, or absent
--   rq:wip:<queue>                 zset    the leases: `<job>:<token>` of each running job -> when it expires, Redis TIME
--                                          in seconds, and ten years. RQ's own clean-up takes no lock and must never
--                                          touch them, so for RQ they are far from their end
--   rq:worker:<worker>             hash    RQ's record of a worker; 60 s after its last heartbeat it expires
--   rq:finished:<queue>, rq:failed:<queue>, rq:canceled:<queue>   zset   job -> JOB_TTL after its end, Unix seconds
-- Keys of a batch. Complete, they expire after TTL, or what was asked for; `draftmill forget` drops them.
--   draftmill:batches              zset    batch -> Unix seconds of its submission; forgotten by reap.lua
--   draftmill:batch:<batch>        hash    what a batch is, see wire.py. Its owner is who submitted it
--   draftmill:open:<batch>         hash    job without an outcome -> `<n> <custom_id>`: it is queued, runs or is set aside.
--                                          A job that is not in it is never run or recorded
--   draftmill:ended:<batch>        bitmap  by line number: the line has a recorded outcome. A batch is complete when
--                                          nothing is open and `total` bits are set
--   draftmill:handed:<batch>       bitmap  by line number: its outcome was acknowledged
--   draftmill:aside:<batch>        set     jobs of the batch that are in draftmill:later or draftmill:alone
--   draftmill:failures:<batch>     hash    job that could be retried -> how it ended without a completion, in three lines:
--                                          `<outcome> <n> <entry> <reason>`: where that stands or stood in the results,
--                                          and why; more of the reason; and, for people, `<Redis TIME in ms> <leases
--                                          that counted> <pair> <worker> <custom_id>`
--   draftmill:results:<batch>      stream  outcomes that nobody acknowledged: `line`, the JSON output line, `n`, `job`
--   draftmill:bad:<batch>          list    error lines of the dataset's bad lines
--   draftmill:rest:<batch>         hash    `<number> <lines>` of a chunk -> its lines, compressed, that a feeder is to queue
--                                          once there is room. See rest/stored.py
--   draftmill:holder:<batch>       string  `<token> <place>` of the OUT that collects it; expires
-- Other keys of the project
--   draftmill:rests                zset    batch of which a feeder is to queue lines -> bytes of their chunks
--   draftmill:feeder               string  the feeder that does; expires
--   draftmill:generation           string  the last generation that was given out
--   draftmill:failed               stream  the latest failures of all batches, for people to read: `batch`, `custom_id`,
--                                          `worker`, `reason`. A day after the last one it expires
--   draftmill:unended:<w>          zset    batch that is not complete -> when reap.lua last looked at it
--   draftmill:turns:<w>:<pair>     zset    `<priority>:<user>`, a flow -> when its next job is due, in virtual time
--   draftmill:turns:<w>:<pair>:<flow>  zset  batch of the flow that has queued jobs -> when its next one is due
--   draftmill:parked:<w>:<pair>    zset    flow whose user is at the limit -> when its next job was due. It is not among
--                                          the turns meanwhile, so that a claim need not pass it
--   draftmill:parked:user:<w>:<user>  set  `<pair>:<flow>` of the user's flows that are parked
--   draftmill:clock:<w>:<pair>     string  the latest time at which a job came due since a flow was parked
--   draftmill:paces:<w>:<pair>     hash    worker that takes jobs -> `<tokens a second of a row> <rows> <gone when>`, the
--                                          last in Redis TIME in ms; expires
--   draftmill:bell:<w>:<pair>      list    as many entries as workers are to wake and look for jobs; expires
--   draftmill:alone:<w>:<pair>     list    jobs on their last lease, which must run alone; the head is the oldest
--   draftmill:drains:<w>:<pair>    string  worker that drains to run one of these, `-` once it did; expires
--   draftmill:running:<w>          hash    queue in which jobs are leased, or were -> user of its batch
--   draftmill:later:<w>            zset    job that is to be tried again -> when, Redis TIME in ms
--   draftmill:alive                hash    `last` -> when a worker last renewed; length of leases in ms -> since when
--                                          renewals came so often that no such lease can have run out for want of Redis
--   draftmill:spent                hash    `prompt <user>` or `generated <user>` -> tokens of the user's lines that ended;
--                                          `metered <user>` -> generated ones of them for which a machine said how much it
--                                          drew, `millijoules <user>` -> how much
--   draftmill:limits               hash    user, or `*` for all others -> most jobs that may run; `draftmill limit`
--   draftmill:workers              zset    worker -> its last heartbeat, Redis TIME in seconds
--   draftmill:worker:<worker>      hash    what a worker reports of itself, see wire.py; expires a day after its end
--   draftmill:fleet                hash    what operators ask of the fleet, see wire.py; `draftmill workers`
--
-- The first two arguments are the same everywhere:
--   ARGV[1]  the caller's time as RQ writes it, for display only
--   ARGV[2]  TTL: seconds that a complete batch is kept of which nothing else was asked

local AT, TTL = ARGV[1], tonumber(ARGV[2])
local TEN_YEARS, JOB_TTL = 315360000, 3600
local RUNNING, LATER = 'draftmill:running:' .. WIRE, 'draftmill:later:' .. WIRE
local UNENDED = 'draftmill:unended:' .. WIRE

-- A line number, which is the place of a bit, whatever somebody wrote there.
local function place(n)
  n = tonumber(n) or 0
  return string.format('%.0f', n >= 0 and n < 2 ^ 32 and math.floor(n) or 0)
end

-- Jobs to which this script has given an outcome, and from which it took the lease: Redis is told at the end.
local has_ended, is_dropped = {}, {}

-- Line number and custom_id of a job without an outcome, or nothing.
local function open_line(batch, id)
  local entry = batch ~= '' and not has_ended[id] and redis.call('HGET', 'draftmill:open:' .. batch, id)
  if entry then return string.match(entry, '^(%S*) ?(.*)$') end
end

-- What the field `queued` of a job says: its generation, its size as text, and since when it waits.
local function when_queued(field)
  local generation, size, since = string.match(type(field) == 'string' and field or '', '^(%d+) (%d+) (%d+)$')
  return generation or '0', size or '0', tonumber(since)
end

-- A job as a table, or nil if its hash is gone, is no hash, or has no body. It is of the batch that its queue names, if
-- nobody knows better. Only claim.lua asks for the body, `data`, which may have megabytes, and for what the outcome hands
-- back; who writes an outcome reads that by itself: see kept_of.
local function read_job(id, batch, with_body)
  local key = 'rq:job:' .. id
  if not with_body and redis.pcall('HEXISTS', key, 'data') ~= 1 then return nil end
  local field = redis.pcall('HMGET', key, 'origin', 'status', 'worker_name', 'queued', 'lease', 'leases',
    unpack(with_body and { 'data', 'keep' } or {}))
  if field.err or (with_body and not field[7]) then return nil end
  local origin = field[1] or ''
  local generation, size, since = when_queued(field[4])
  local worker = field[3] or ''
  local lease, lease_ms = string.match(field[5] or '', '^(%d+%.%d+) (%d+)$')
  local leases, mark = string.match(field[6] or '', '^(%d+) ([01])$')
  return {
    id = id, key = key, origin = origin, queue = origin, batch = batch or string.match(origin, ':([^:]+)$') or '',
    status = field[2] or '', worker = worker, generation = generation, size = size, enqueued = since or NOW,
    token = lease and worker .. '.' .. lease or '', lease_ms = tonumber(lease_ms) or 0,
    leases = tonumber(leases) or 0, counts = mark == '1', data = field[7], keep = field[8],
  }
end

-- What a job's result hands back: a JSON object, or ''.
local function kept_of(job)
  return job.key and redis.call('HGET', job.key, 'keep') or ''
end

-- Whether a job has no outcome yet. Then it gets its line's number and custom_id, which whoever ends it needs.
local function is_open(job)
  local n, custom_id = open_line(job.batch, job.id)
  job.n, job.custom_id = place(n), custom_id or ''
  return n ~= nil
end

-- What is known of an open job of a batch whose hash is gone, or nil if it is not open. Under which lease it runs, if it
-- does, only the leases say.
local function read_ghost(id, batch)
  local n, custom_id = open_line(batch, id)
  if not n then return nil end
  local job = {
    id = id, gone = true, batch = batch, n = place(n), custom_id = custom_id, queue = '', token = '', leases = 0,
    worker = '',
  }
  for _, queue in ipairs(queues_of(batch)) do
    for _, lease in ipairs(redis.call('ZRANGE', 'rq:wip:' .. queue, 0, -1)) do
      local whose, token = string.match(lease, '^(.*):([^:]*)$')
      if whose == id then
        job.queue, job.token, job.worker = queue, token, string.match(token, '^(.*)%.%d+%.%d+$') or ''
      end
    end
  end
  return job
end

-- Who submitted a batch. It is looked up once.
local owners = {}
local function owner_of(batch)
  owners[batch] = owners[batch] or redis.call('HGET', 'draftmill:batch:' .. batch, 'user') or ''
  return owners[batch]
end

-- Those in which a job may be: of one whose hash is gone nobody knows in which it was.
local function queues_for(job)
  return job.gone and queues_of(job.batch) or { job.queue }
end

-- No script cancels a batch and then asks, so it is looked up once.
local is_cancelled = {}
local function cancelled(job)
  if is_cancelled[job.batch] == nil then
    is_cancelled[job.batch] = job.batch ~= ''
      and redis.call('HEXISTS', 'draftmill:batch:' .. job.batch, 'cancelled_at') == 1
  end
  return is_cancelled[job.batch]
end

-- A lease as RQ's registry of started jobs has it, and its score.
local function lease_of(job)
  return job.id .. ':' .. job.token
end

local function score_of(expiry)
  return string.format('%.3f', expiry / 1000 + TEN_YEARS)
end

-- When the lease of a job expires, Redis TIME in ms, or nil if it has none.
local function leased(job)
  local score = not is_dropped[job.id] and redis.call('ZSCORE', 'rq:wip:' .. job.queue, lease_of(job))
  return score and math.floor((tonumber(score) - TEN_YEARS) * 1000 + 0.5) or nil
end

-- Leases that count: those under which the job was in a row. They are what makes poison of it.
local function blame(job)
  if job.counts then return end
  job.leases, job.counts = job.leases + 1, true
  redis.call('HSET', job.key, 'leases', job.leases .. ' 1')
end

local function clear(job)
  if not job.counts then return end
  job.leases, job.counts = job.leases - 1, false
  redis.call('HSET', job.key, 'leases', job.leases .. ' 0')
end

-- Takes the lease away, whoever holds it; true if there was one.
local function drop_lease(job)
  if not leased(job) then return false end
  is_dropped[job.id] = true
  gather('ZREM', 'rq:wip:' .. job.queue, lease_of(job))
  unpark_user(owner_of(job.batch))
  return true
end

-- How many open jobs of a batch are where they should be: in its queues, running, or set aside.
local function count_known(batch, queues)
  local known = redis.call('SCARD', 'draftmill:aside:' .. batch)
  for _, queue in ipairs(queues) do
    known = known + redis.call('LLEN', 'rq:queue:' .. queue) + redis.call('ZCARD', 'rq:wip:' .. queue)
  end
  return known
end

-- Notes that a job waits elsewhere than in its queue.
local function set_aside(job)
  redis.call('SADD', 'draftmill:aside:' .. job.batch, job.id)
end

-- Takes it from there.
local function take_up(job)
  if redis.call('SREM', 'draftmill:aside:' .. job.batch, job.id) == 0 then return end
  if redis.call('ZREM', LATER, job.id) == 0 then
    for _, queue in ipairs(queues_for(job)) do
      redis.call('LREM', 'draftmill:alone:' .. WIRE .. ':' .. pair_of(queue), 1, job.id)
    end
  end
end

-- Notes since when the job waits that is next in a queue of a batch.
local function note_wait(batch, queue, since)
  redis.call('HSET', 'draftmill:batch:' .. batch, 'waiting_since ' .. pair_of(queue), since)
end

-- Puts a job whose lease was dropped at the front of its queue, or where those wait that must run alone: whatever
-- killed its workers, neighbours must not be blamed a third time.
local function requeue(job)
  local queued = table.concat({ job.generation, job.size, NOW }, ' ')
  redis.call('HSET', job.key, 'status', 'queued', 'started_at', '', 'worker_name', '', 'queued', queued)
  if job.leases >= MOST_LEASES - 1 then
    set_aside(job)
    redis.call('RPUSH', 'draftmill:alone:' .. WIRE .. ':' .. pair_of(job.queue), job.id)
    ring(pair_of(job.queue), math.huge) -- only who holds nothing may take it
    return
  end
  if redis.call('LPUSH', 'rq:queue:' .. job.queue, job.id) == 1 then note_wait(job.batch, job.queue, NOW) end
  take_turns(job.batch)
  ring(pair_of(job.queue), 1)
end

local STATUS = { done = 'finished', failed = 'failed', cancelled = 'canceled' }
local KINDS = { 'ended', 'handed', 'failures', 'results', 'bad', 'rest' }

-- Whether each line of a batch has an outcome.
local function complete(batch)
  if redis.call('EXISTS', 'draftmill:open:' .. batch) == 1 then return false end
  local about =
    redis.call('HMGET', 'draftmill:batch:' .. batch, 'total', 'generation', 'done', 'failed', 'cancelled')
  local ended = about[2] and redis.call('BITCOUNT', 'draftmill:ended:' .. batch)
    or (tonumber(about[3]) or 0) + (tonumber(about[4]) or 0) + (tonumber(about[5]) or 0) -- of the first wire
  return ended >= (tonumber(about[1]) or 0)
end

-- Seconds that a batch is kept once it is complete.
local function kept_for(batch)
  return tonumber(redis.call('HGET', 'draftmill:batch:' .. batch, 'kept_for')) or TTL
end

-- Lets the keys of a batch expire once it is complete.
local function expire_if_complete(batch)
  if not complete(batch) then return end
  local seconds = kept_for(batch)
  redis.call('HDEL', 'draftmill:batch:' .. batch, 'paused_at')
  redis.call('EXPIRE', 'draftmill:batch:' .. batch, seconds)
  for _, kind in ipairs(KINDS) do redis.call('EXPIRE', 'draftmill:' .. kind .. ':' .. batch, seconds) end
  for _, queue in ipairs(queues_of(batch)) do
    for _, status in pairs(STATUS) do redis.call('EXPIRE', 'rq:' .. status .. ':' .. queue, seconds) end
  end
  redis.call('ZREM', UNENDED, batch)
end

-- Writes what was gathered; then registries of ended jobs forget old ones, and batches that are complete may expire.
local ended_in, filed_in = {}, {}
local function write()
  write_gathered()
  for registry, now in pairs(filed_in) do try(redis.call, 'ZREMRANGEBYSCORE', registry, '-inf', now) end
  for batch in pairs(ended_in) do try(expire_if_complete, batch) end
  ended_in, filed_in = {}, {}
  fail_if_tried_in_vain()
end

-- Shows RQ how a job ended; when it did, the registry says. Its body goes; RQ's tools find an empty one.
local function file(job, status)
  if job.gone then return end
  redis.call('HSET', job.key, 'status', status, 'data', NO_BODY)
  redis.call('HDEL', job.key, 'keep')
  redis.call('EXPIRE', job.key, JOB_TTL)
  local registry, seconds = 'rq:' .. status .. ':' .. job.queue, math.floor(NOW / 1000)
  filed_in[registry] = seconds
  gather('ZADD', registry, seconds + JOB_TTL, job.id)
end

-- Why a job ended without a completion, as its output line says it: code and message, in one line.
local function reason_in(line)
  local is_json, found = pcall(cjson.decode, line)
  local fault = is_json and type(found) == 'table' and found.error
  if type(fault) ~= 'table' then return '' end
  return (string.gsub(tostring(fault.code) .. ': ' .. tostring(fault.message), '%c', ' '))
end

-- What draftmill:failures is to have of a job: of the reason as much as --reason looks at, then some more for people.
local MOST_REASON, MOST_SHOWN = 200, 1000
local function failure_of(job, outcome, entry, line)
  local reason = reason_in(line)
  local head = table.concat({ outcome, job.n, entry, string.sub(reason, 1, MOST_REASON) }, ' ')
  local about = table.concat({ NOW, job.leases, pair_of(job.queue), job.worker, job.custom_id }, ' ')
  return table.concat({ head, string.sub(reason, MOST_REASON + 1, MOST_SHOWN), about }, '\n')
end

-- Whether what draftmill:failures has of a job names a reason that has this text in it; each has the empty one.
local function failed_for(failure, text)
  local reason = string.match(failure, '^%a+ %d+ %S+ ?([^\n]*)') or ''
  return string.find(string.lower(reason), string.lower(text), 1, true) ~= nil
end

-- Ends an open job: result line, mark, RQ's registries, counters, expiry. The line comes first: Redis, its memory full,
-- refuses it while the script has changed nothing, and so does a key of another type.
local function record(job, outcome, line, prompt_tokens, completion_tokens, millijoules)
  local batch, results = 'draftmill:batch:' .. job.batch, 'draftmill:results:' .. job.batch
  local entry = redis.call('XADD', results, '*', 'line', line, 'n', job.n, 'job', job.id)
  has_ended[job.id], ended_in[job.batch] = true, true
  gather('HDEL', 'draftmill:open:' .. job.batch, job.id)
  gather('BITFIELD', 'draftmill:ended:' .. job.batch, 'SET', 'u1', job.n, 1)
  file(job, STATUS[outcome])
  drop_lease(job)
  take_up(job)
  if outcome ~= 'done' then
    redis.call('HINCRBY', batch, outcome, 1)
    if not cancelled(job) then
      redis.call('HSET', 'draftmill:failures:' .. job.batch, job.id, failure_of(job, outcome, entry, line))
    end
  end
  if prompt_tokens then -- by a worker
    add_up(batch, 'prompt_tokens', prompt_tokens)
    add_up(batch, 'completion_tokens', completion_tokens)
    local user = owner_of(job.batch)
    add_up('draftmill:spent', 'prompt ' .. user, prompt_tokens)
    add_up('draftmill:spent', 'generated ' .. user, completion_tokens)
    if millijoules ~= '' then
      add_up('draftmill:spent', 'metered ' .. user, completion_tokens)
      add_up('draftmill:spent', 'millijoules ' .. user, millijoules)
    end
  end
end

-- The output line of a job that ends without a completion.
local function error_line(job, code, message)
  local keep = kept_of(job)
  return '{"id":"batch_req_' .. job.id .. '","custom_id":' .. cjson.encode(job.custom_id)
    .. ',"response":null,"error":{"code":' .. cjson.encode(code) .. ',"message":' .. cjson.encode(message) .. '}'
    .. (keep ~= '' and ',"keep":' .. keep or '') .. '}'
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

-- Ends a job that somebody cancelled or deleted by RQ's tools, such as the buttons of its dashboard.
local function record_taken(job)
  local message = "this request was cancelled or deleted by RQ's tools (rq, rq-dashboard), not by draftmill"
  record(job, 'cancelled', error_line(job, 'request_stopped', message))
end
