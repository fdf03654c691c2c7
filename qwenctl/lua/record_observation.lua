-- Keep what the cloud says, for proxies (the address) and for people (status).
-- ARGV: 3 owner, 4 epoch, 5 observed state, 6 instance id, 7 address, 8 reason, 9 error of the look.
-- Returns 'ok' or 'epoch'.
if not holds(ARGV[3], ARGV[4]) then return 'epoch' end
local before = redis.call('HMGET', STATE, 'observed', 'instance_id', 'address', 'observed_reason', 'observe_error')
redis.call('HSET', STATE, 'observed', ARGV[5], 'instance_id', ARGV[6], 'address', ARGV[7],
  'observed_reason', ARGV[8], 'observe_error', ARGV[9], 'observed_at', num(NOW))
for i = 1, 5 do
  if before[i] ~= ARGV[4 + i] then
    changed('observation')
    break
  end
end
return 'ok'
