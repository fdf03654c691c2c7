-- Write to a key that nothing else uses, which fails on a replica; see begin_session.
-- Returns 1.
redis.call('SET', KEYS[3], num(NOW))
return 1
