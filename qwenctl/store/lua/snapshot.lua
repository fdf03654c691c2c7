-- Read the whole state of one GPU at one moment.
-- Returns {now, state, leases with expiry, blocks with expiry, info, node, lock}; hashes and sorted
-- sets as flat lists, unexpired leases and blocks only.
local from = '(' .. num(NOW)
return {
  num(NOW),
  redis.call('HGETALL', STATE),
  redis.call('ZRANGEBYSCORE', LEASES, from, '+inf', 'WITHSCORES'),
  redis.call('ZRANGEBYSCORE', BLOCKS, from, '+inf', 'WITHSCORES'),
  redis.call('HGETALL', INFO),
  redis.call('HGETALL', NODE),
  redis.call('HGETALL', LOCK),
}
