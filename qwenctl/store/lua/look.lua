-- Have the controller ask the cloud again, after a failed connection to the node.
-- ARGV: 3 actor, 4 cause. Returns 1.
redis.call('HSET', STATE, 'look_at', num(NOW))
changed('look')
return 1
