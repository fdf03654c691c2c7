-- Keep the GPU off, after a drain; running work is finished unless cut.
-- ARGV: 3 block, 4 time to live (ms; -1: until unblocked), 5 reason, 6 actor, 7 '1' to cut.
-- Returns the phase.
local name, ttl, reason, actor = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local expiry = ttl < 0 and 'inf' or num(NOW + ttl)
redis.call('ZADD', BLOCKS, expiry, name)
redis.call('HSET', INFO, name, cjson.encode({reason = reason, actor = actor, since = NOW}))
event('block', 'name', name, 'cause', reason, 'actor', actor, 'expiry', expiry)
local now_phase = phase()
if ARGV[7] == '1' and now_phase ~= 'off' then
  redis.call('HSET', STATE, 'cut', actor)
end
changed('block')
return now_phase
