-- Ask the controller to read the cloud again: a connection to the node failed.
-- ARGV: 3 actor, 4 cause. Returns 1.
redis.call('HSET', STATE, 'look_at', num(NOW))
changed('look')
return 1
