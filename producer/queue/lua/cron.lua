-- One look of a scheduler at the slots of all schedules: ends, renews, takes over, takes. It stands alone: record.lua
-- is about jobs. A slot is written `<schedule>@<Unix ms>`.
--
-- Keys
--   draftmill:cron         hash   schedule -> what it is, JSON (schedule.py); `cron add` and `cron remove` write it
--   draftmill:cron:next    zset   schedule -> its first slot that nobody took, Unix ms
--   draftmill:cron:open    zset   slot that was taken and has not ended -> lease expiry, Redis TIME in ms
--   draftmill:cron:owner   hash   slot -> the scheduler that holds its lease
--   draftmill:cron:batch   hash   slot whose results are to be written -> its batch, once that is submitted
--   draftmill:cron:last    hash   schedule -> how its last slot ended, JSON (schedules.py)
--
--   ARGV[1]  this scheduler   ARGV[2]  lease in ms, 0 to give all up   ARGV[3]  most slots to take
--   ARGV[4]  number of slots that ended   then for each: slot, JSON for `last`
--   then     number of slots that it holds   then each
--   then     number of schedules that are due, and for each: schedule, its JSON and its next slot as this scheduler
--            saw them, the next slot afterwards, and the slot to take, or '' for none
-- Returns {held slots that were lost, slots taken}. A schedule that somebody else took from since, or that changed,
-- gives nothing.

local me, lease, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local at = 3

local function read()
  at = at + 1
  return ARGV[at]
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken, lost = {}, {}

local function schedule_of(slot)
  return string.match(slot, '^(.+)@%d+$') or ''
end

local function holds(slot)
  return redis.call('HGET', 'draftmill:cron:owner', slot) == me
end

local function close(slot)
  redis.call('ZREM', 'draftmill:cron:open', slot)
  redis.call('HDEL', 'draftmill:cron:owner', slot)
  redis.call('HDEL', 'draftmill:cron:batch', slot)
end

local function take(slot)
  redis.call('ZADD', 'draftmill:cron:open', now + lease, slot)
  redis.call('HSET', 'draftmill:cron:owner', slot, me)
  taken[#taken + 1] = slot
end

for _ = 1, tonumber(read()) do
  local slot, how = read(), read()
  if holds(slot) then
    close(slot)
    local schedule = schedule_of(slot)
    if redis.call('HEXISTS', 'draftmill:cron', schedule) == 1 then
      redis.call('HSET', 'draftmill:cron:last', schedule, how)
    end
  end
end

for _ = 1, tonumber(read()) do
  local slot = read()
  if holds(slot) then
    redis.call('ZADD', 'draftmill:cron:open', now + lease, slot)
  else
    lost[#lost + 1] = slot
  end
end

if lease > 0 and room > 0 then
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', 'draftmill:cron:open', '-inf', now, 'LIMIT', 0, room)) do
    if redis.call('HEXISTS', 'draftmill:cron', schedule_of(slot)) == 1 then take(slot) else close(slot) end
  end
end

for _ = 1, tonumber(read()) do
  local schedule, json, seen, next, slot = read(), read(), read(), read(), read()
  local same = redis.call('HGET', 'draftmill:cron', schedule) == json
    and tonumber(redis.call('ZSCORE', 'draftmill:cron:next', schedule)) == tonumber(seen)
  if same and (slot == '' or #taken < room) then
    redis.call('ZADD', 'draftmill:cron:next', next, schedule)
    if slot ~= '' then take(slot) end
  end
end

return { lost, taken }
