-- Takes up to n jobs from the queues in the order given and leases them to a worker. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  length of a lease in ms   ARGV[5]  number of the first lease   ARGV[6]  n
--   ARGV[7]  how many of these n would only wait in the worker   ARGV[8]  how many jobs it has already
--   ARGV[9]  leases after which a job is poison
--   ARGV[10…]  queues, the most urgent first
-- Returns a list of {job, data, token, batch, custom_id, ms in the queue, 1 if it must run alone}. Entries of the
-- queue whose job is gone, ended or already leased are dropped; the jobs of a cancelled batch end here.
-- `rq suspend` stops claiming.
--
-- Jobs that would wait are taken from full queues only, a quarter of what is there: so a row that ends is filled
-- without a trip to Redis, and yet the last jobs of a batch go to the workers that have a row free.
-- A job on its last lease runs alone: whatever killed its workers, its neighbours must not be blamed a third time.
-- A worker that meets one claims nothing more until it has finished what it has, and then only this one.

local worker, lease, number, wanted = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local ahead, held, limit = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local MOST_LOOKED_AT = 1000
local claimed, looked_at = {}, 0
if redis.call('EXISTS', 'rq:suspended') == 1 then return claimed end

local there = 0
for q = 10, #ARGV do there = there + redis.call('LLEN', 'rq:queue:' .. ARGV[q]) end
wanted = wanted - ahead + math.min(ahead, math.floor(there / 4))

for q = 10, #ARGV do
  while #claimed < wanted and looked_at < MOST_LOOKED_AT do
    local id = redis.call('LPOP', 'rq:queue:' .. ARGV[q])
    if not id then break end
    looked_at = looked_at + 1
    local job = read_job(id)
    local outcome = job and done(job)
    if outcome then
      redis.call('HSET', job.key, 'status', STATUS[outcome])
    elseif job and not leased(job) then
      if cancelled(job) then
        record_cancelled(job)
      elseif job.leases == limit - 1 and held + #claimed > 0 then
        redis.call('LPUSH', 'rq:queue:' .. ARGV[q], id)
        return claimed
      else
        job.queue = ARGV[q]
        local token = worker .. '.' .. (number + #claimed)
        local execution = id .. ':' .. token
        local seconds = math.floor(NOW / 1000)
        redis.call('ZADD', 'draftmill:leases:' .. job.queue, NOW + lease, id)
        redis.call('HSET', job.key, 'status', 'started', 'origin', job.queue, 'started_at', AT, 'worker_name', worker,
          'draftmill_lease', token, 'draftmill_leases', job.leases + 1)
        redis.call('ZADD', 'rq:wip:' .. job.queue, seconds + TEN_YEARS, execution)
        redis.call('HSET', 'rq:execution:' .. execution, 'id', token, 'job_id', id, 'worker_name', worker,
          'created_at', seconds, 'last_heartbeat', seconds)
        redis.call('EXPIRE', 'rq:execution:' .. execution, TTL)
        redis.call('SADD', 'rq:worker:' .. worker .. ':executions', execution)
        redis.call('EXPIRE', 'rq:worker:' .. worker .. ':executions', TTL)
        if job.batch ~= '' then redis.call('HINCRBY', 'draftmill:batch:' .. job.batch, 'running', 1) end
        local alone = job.leases == limit - 1
        claimed[#claimed + 1] = { id, job.data, token, job.batch, job.custom_id, NOW - job.enqueued, alone and 1 or 0 }
        if alone then return claimed end
      end
    end
  end
end
return claimed
