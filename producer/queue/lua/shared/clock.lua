-- What time it is, and whether Redis was within reach. This file stands in front of turns.lua.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local NOW = now_ms()

-- Notes that Redis is within reach of a worker whose leases have this length in ms, and who has just renewed them. While
-- Redis is away nobody can renew, so afterwards reap.lua waits for one lease: until then all who live have renewed. It was
-- away for a lease of a length if no such note came for half that length, or if its clock was set back so far. Returns the
-- shortest length in the fleet.
local function note_alive(length)
  local alive = redis.call('HGETALL', 'draftmill:alive')
  local since, last, shortest = { [length] = false }, 0, tonumber(length)
  for i = 1, #alive, 2 do
    if alive[i] == 'last' then last = tonumber(alive[i + 1]) else since[alive[i]] = true end
  end
  for each, is_known in pairs(since) do
    local was_away = math.abs(NOW - last) > tonumber(each) / 2
    if was_away or not is_known then redis.call('HSET', 'draftmill:alive', each, NOW) end
    shortest = math.min(shortest, tonumber(each))
  end
  redis.call('HSET', 'draftmill:alive', 'last', NOW)
  return shortest
end
