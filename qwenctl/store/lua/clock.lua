-- Read the clock, and absorb a step ahead that the caller's monotonic clock has proved.
-- ARGV: 3 step (ms; 0: none), 4 the number of steps so far, as the caller knows it,
--       5 the time of the caller's earlier reading.
-- Returns {now, number of steps}.
-- Of many callers the first absorbs a step. A caller that stood still itself, as a virtual machine
-- may, proves nothing: between its two readings there must be a gap in which no script ran at all.
local by, known, from = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local seen = redis.call('HMGET', LOCK, 'steps', 'gap_from', 'gap_to')
local began, ended = tonumber(seen[2] or 0), tonumber(seen[3] or 0)
if by > 0 and known == (seen[1] or '0') and began >= from - 2000 and ended - began >= by - 1000 then
  shift(by)
end
return {num(NOW), redis.call('HGET', LOCK, 'steps') or '0'}
