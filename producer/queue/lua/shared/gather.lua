-- What scripts about jobs write together: each change is an entry of its own in the append-only file, so those of one key
-- are one command. They are written at the end of a script, even if it fails, see finish.lua; what must be there before,
-- because the script reads it back, is written by a call of `write`, see record.lua. This file stands in front of that.

-- Entries that wait to be added to their keys, or taken from them.
local gathered = {}
local function gather(command, key, ...)
  local name = command .. ' ' .. key
  local call = gathered[name] or { command = command, key = key }
  if #call == 0 then gathered[name], gathered[#gathered + 1] = call, call end
  for _, part in ipairs({ ... }) do call[#call + 1] = part end
end

-- What waits to be added up: key -> field -> how much.
local sums = {}
local function add_up(key, field, n)
  sums[key] = sums[key] or {}
  sums[key][field] = (sums[key][field] or 0) + (tonumber(n) or 0)
end

local function add(key, fields)
  local call = { 'HSET', key }
  for field, n in pairs(fields) do
    call[#call + 1] = field
    call[#call + 1] = string.format('%.0f', (tonumber(redis.call('HGET', key, field)) or 0) + n)
  end
  redis.call(unpack(call))
end

-- Does something that may fail. All that can be written is written, and the last error comes at the end.
local problem
local function try(act, ...)
  local ran, answer = pcall(act, ...)
  if not ran then problem = answer end
end

local function fail_if_tried_in_vain()
  local last = problem
  problem = nil
  if last then error(last, 0) end
end

-- Lua hands a function some thousand arguments at most; each entry has 1, 2 or 4.
local MOST_AT_ONCE = 2000
local function write_gathered()
  for _, call in ipairs(gathered) do
    for first = 1, #call, MOST_AT_ONCE do
      try(redis.call, call.command, call.key, unpack(call, first, math.min(first + MOST_AT_ONCE - 1, #call)))
    end
  end
  for key, fields in pairs(sums) do try(add, key, fields) end
  gathered, sums = {}, {}
end
