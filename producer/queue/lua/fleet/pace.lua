-- Notes how fast the rows of a worker are, and tells it how that compares with its pair's fleet. Keys: see record.lua.
--   ARGV[3]  worker   ARGV[4]  pair, as it stands in the names of queues
--   ARGV[5]  tokens a second of one of its rows, 0 if unknown   ARGV[6]  its rows, 0 while it takes no jobs
--   ARGV[7]  ms until it counts as gone
-- Returns {behind, meanwhile} as text. Both count jobs, all of one size, that the fleet ends:
--   behind     while a row of this worker would be late with one of them, beside a usual row; 0 if it is no slower
--   meanwhile  while a row of this worker ends one of them
--
-- A usual row is as fast as the row of the average token: fast rows count more, because they do more. No single machine
-- sets it, so a speed that is measured a little wrong changes little.
--
-- Up to MOST workers are read, at random, and stand for all.

local worker, speed, rows = ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local PACES, MOST, HOUR = of_pair('paces', ARGV[4]), 100, 3600
if speed <= 0 or rows <= 0 then
  redis.call('HDEL', PACES, worker)
  return { '0', '0' }
end
redis.call('HSET', PACES, worker, string.format('%.17g %d %.0f', speed, rows, NOW + tonumber(ARGV[7])))
redis.call('EXPIRE', PACES, HOUR)

local read, all, squares = 0, 0, 0
local found = redis.call('HRANDFIELD', PACES, MOST, 'WITHVALUES')
for i = 1, #found, 2 do
  local its_speed, its_rows, ends = string.match(found[i + 1], '^(%S+) (%S+) (%S+)$')
  if not ends or tonumber(ends) < NOW then
    redis.call('HDEL', PACES, found[i])
  else
    read = read + 1
    all = all + its_rows * its_speed
    squares = squares + its_rows * its_speed ^ 2
  end
end
if read == 0 then return { '0', '0' } end
local usual = squares / all
all = all * redis.call('HLEN', PACES) / read
return { string.format('%.3f', all * math.max(0, 1 / speed - 1 / usual)), string.format('%.3f', all / speed) }
