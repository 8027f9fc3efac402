-- Turns: which flow and which batch is next, and who waits for that. claim.lua says how turns are taken, record.lua lists
-- the keys. This file stands in front of gather.lua.

-- The pair in the name of a queue.
local function pair_of(queue)
  return string.match(queue, '^draftmill%.' .. WIRE .. '%.(.+):[^:]+$') or ''
end

-- The queues of a batch, or none if it is not there.
local function queues_of(batch)
  local queues = {}
  for queue in string.gmatch(redis.call('HGET', 'draftmill:batch:' .. batch, 'queue') or '', '%S+') do
    queues[#queues + 1] = queue
  end
  return queues
end

-- A key of a pair.
local function of_pair(kind, pair)
  return 'draftmill:' .. kind .. ':' .. WIRE .. ':' .. pair
end

-- Wakes workers of a pair who wait: one for each of so many jobs, and no more than there are workers. A worker that comes
-- too late for a job looks in vain once; one that misses its call looks by itself within seconds.
local function ring(pair, jobs)
  local bell = of_pair('bell', pair)
  local rung = math.min(jobs, redis.call('ZCARD', 'draftmill:workers') - redis.call('LLEN', bell))
  for _ = 1, rung do redis.call('RPUSH', bell, '') end
  if rung > 0 then redis.call('EXPIRE', bell, BELL_SECONDS) end
end

-- What a job of a priority costs its flow.
local COST = { high = 1, normal = 16, low = 256 }

-- The first of those who take turns, and when it is due; nothing if there are none.
local function first_of(turns)
  local found = redis.call('ZRANGE', turns, 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2])
end

-- When a parked flow that was due then is due by now: it saves nothing up meanwhile.
local function due_by_now(pair, due)
  return math.max(due, tonumber(redis.call('GET', of_pair('clock', pair))) or 0)
end

-- Lets a batch take turns with the others of its flow, and the flow with other flows, in each pair for which the batch has
-- queued jobs: the first job of a newcomer comes due after the job that is next. A batch that is paused takes none.
local function take_turns(batch)
  local about = redis.call('HMGET', 'draftmill:batch:' .. batch, 'priority', 'user', 'paused_at')
  if about[3] then return end
  for _, queue in ipairs(queues_of(batch)) do
    if redis.call('EXISTS', 'rq:queue:' .. queue) == 1 then
      local pair, flow = pair_of(queue), about[1] .. ':' .. about[2]
      local turns, parked = of_pair('turns', pair), of_pair('parked', pair)
      local _, next_batch = first_of(turns .. ':' .. flow)
      redis.call('ZADD', turns .. ':' .. flow, 'NX', (next_batch or 0) + 1, batch)
      if not redis.call('ZSCORE', parked, flow) then
        local _, next_flow = first_of(turns)
        local _, next_parked = first_of(parked)
        if next_parked then next_flow = math.min(next_flow or math.huge, due_by_now(pair, next_parked)) end
        redis.call('ZADD', turns, 'NX', (next_flow or 0) + (COST[about[1]] or COST.low), flow)
      end
    end
  end
end

-- Takes a flow out of the turns while its user is at the limit.
local function park(pair, flow, user, due)
  redis.call('ZREM', of_pair('turns', pair), flow)
  redis.call('ZADD', of_pair('parked', pair), due, flow)
  redis.call('SADD', 'draftmill:parked:user:' .. WIRE .. ':' .. user, pair .. ':' .. flow)
end

-- Lets it take turns again.
local function unpark(pair, flow, user)
  local parked, names = of_pair('parked', pair), 'draftmill:parked:user:' .. WIRE .. ':' .. user
  redis.call('SREM', names, pair .. ':' .. flow)
  local due = redis.call('ZSCORE', parked, flow)
  if not due then return end
  redis.call('ZADD', of_pair('turns', pair), 'NX', due_by_now(pair, tonumber(due)), flow)
  redis.call('ZREM', parked, flow)
  if redis.call('EXISTS', parked) == 0 then redis.call('DEL', of_pair('clock', pair)) end
end

-- Lets all flows of a user take turns again, of whose jobs one has ended.
local function unpark_user(user)
  for _, name in ipairs(redis.call('SMEMBERS', 'draftmill:parked:user:' .. WIRE .. ':' .. user)) do
    local pair, flow = string.match(name, '^([^:]*):(.*)$')
    unpark(pair, flow, user)
    ring(pair, 1)
  end
end
