-- Ends jobs with their outcomes, but for those that have one or are no longer the caller's to end. Keys: see record.lua.
--   ARGV[3]  worker   then for each job: its id, token of the lease under which it ran, 'done' | 'failed' | 'cancelled',
--   output line, prompt tokens, completion tokens, why it failed, or '', millijoules that its machine drew for it, or ''
-- Returns for each 'recorded', or 'stale' if the commit was dropped. Sending a commit again is harmless. It ends with the
-- first error, which is the last that it returns; of the first job's, it is all: it may be about Redis itself.
--
-- A lease that has run out but was taken by nobody else still counts: the result is as good as any, and a job that is
-- no longer open does not run again. A job that was leased anew belongs to the new holder, and a line that was queued
-- again is of another generation.

local worker = ARGV[3]

local function commit(id, token, outcome, line, prompt_tokens, completion_tokens, reason, millijoules)
  local job = read_job(id)
  if job and not is_open(job) then return job.token == token and 'recorded' or 'stale' end
  local held = job and leased(job)
  if not job or string.match(token, '%.(%d+)%.%d+$') ~= job.generation or (held and job.token ~= token) then
    return 'stale'
  end

  if job.token ~= token then
    local runner, lease = string.match(token, '^(.*)%.(%d+%.%d+)$')
    redis.call('HSET', job.key, 'worker_name', runner, 'lease', lease .. ' ' .. job.lease_ms)
  end
  record(job, outcome, line, prompt_tokens, completion_tokens, millijoules)
  if not held then redis.call('LREM', 'rq:queue:' .. job.queue, 1, job.id) end
  if reason ~= '' then explain(job, outcome, worker, reason) end
  return 'recorded'
end

local answers, ran = {}, true
for i = 4, #ARGV, 8 do
  local answer
  ran, answer = pcall(commit, unpack(ARGV, i, i + 7))
  answers[#answers + 1] = ran and answer or { err = type(answer) == 'table' and answer.err or answer }
  if not ran then break end
end
return (ran or #answers > 1) and answers or answers[1]
