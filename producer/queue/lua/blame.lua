-- Notes which of a worker's jobs are in a row now: from then on a lost lease counts. Keys: see record.lua.
--   ARGV[3…]  for each job: id, token, 1 if it is about to be in a row, 0 if it only waits

for i = 3, #ARGV, 3 do
  local job = read_job(ARGV[i])
  if job and job.token == ARGV[i + 1] and leased(job) then
    if ARGV[i + 2] == '1' then blame(job) else clear(job) end
  end
end
