-- Hands back jobs that a stopping worker did not finish; these leases do not count. Keys: see record.lua.
--   ARGV[3…]  for each job: id, token, in the order in which they should run
-- Returns how many went back to the front of their queue.

local released = 0
for i = #ARGV - 1, 3, -2 do
  local job = read_job(ARGV[i])
  if job and job.token == ARGV[i + 1] and is_open(job) and drop_lease(job) then
    clear(job)
    requeue(job)
    released = released + 1
  end
end
return released
