-- Record, once a boot, that its agent is overdue and where it is told to call.
-- ARGV: 3 owner, 4 epoch, 5 when the boot began (ms), 6 the URLs, 7 the same as a sentence.
-- Returns 1 if it is recorded now, else 0.
local since = tonumber(redis.call('HGET', STATE, 'since') or 0)
if not holds(ARGV[3], ARGV[4]) or phase() ~= 'booting' or math.abs(since - tonumber(ARGV[5])) > 1 then return 0 end
if tonumber(redis.call('HGET', STATE, 'overdue_at') or 0) >= since then return 0 end
redis.call('HSET', STATE, 'overdue_at', num(NOW), 'told_urls', ARGV[6])
event('overdue', 'actor', ARGV[3], 'error', ARGV[7])
changed('overdue')
return 1
