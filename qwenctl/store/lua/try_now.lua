-- Bring the next attempt of a failed GPU forward. It still needs demand, and a controller makes it.
-- ARGV: 3 ms from the failure to the next attempt at the soonest.
-- Returns 1 if it was brought forward.
local state = redis.call('HMGET', STATE, 'failure', 'since')
if phase() ~= 'failed' or not state[1] or state[1] == '' then return 0 end
local about = cjson.decode(state[1])
local soonest = math.max(NOW, tonumber(state[2] or NOW) + tonumber(ARGV[3]))
if about.retry_at * 1000 <= soonest then return 0 end
about.retry_at = soonest / 1000
redis.call('HSET', STATE, 'failure', cjson.encode(about))
changed('retry')
return 1
