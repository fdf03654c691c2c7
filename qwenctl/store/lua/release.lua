-- `down`: drop every lease but running work; with cut, running work too.
-- ARGV: 3 actor, 4 reason, 5 '1' to cut, 6 one lease to drop instead of all ('' for all).
-- Returns the number of leases dropped.
local actor, reason, cut, only = ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6]
local dropped = 0
for _, name in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. num(NOW), '+inf')) do
  if (only == '' and (cut or not is_work(name))) or name == only then
    redis.call('ZREM', LEASES, name)
    redis.call('HDEL', INFO, name)
    dropped = dropped + 1
  end
end
if only == '' then
  redis.call('HSET', STATE, 'released_at', num(NOW))
  local now_phase = phase()
  if cut and now_phase ~= 'off' then
    redis.call('HSET', STATE, 'cut', actor)
  end
  event('down', 'actor', actor, 'cause', reason, 'cut', ARGV[5], 'dropped', dropped)
end
changed('lease')
return dropped
