-- Give the controller lock back, so that a successor need not wait for its expiry.
-- ARGV: 3 owner, 4 epoch. Returns 1 if it was ours.
if not holds(ARGV[3], ARGV[4]) then return 0 end
redis.call('HSET', LOCK, 'expiry', num(NOW))
changed('lock')
return 1
