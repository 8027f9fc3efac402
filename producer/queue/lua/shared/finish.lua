-- Runs the script, which is the function `main` here, and then writes what it gathered, even if it failed. This file
-- stands behind each script that has record.lua in front.

local ran, answer = pcall(main)
local is_written, problem = pcall(write)
if ran and is_written then return answer end
local fault = ran and problem or answer
return { err = type(fault) == 'table' and fault.err or fault }
