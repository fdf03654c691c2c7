-- End a browser's session; see begin_session.
-- ARGV: 3 the session, 4 new version. Returns 1.
redis.call('ZREM', KEYS[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[2], 'version', ARGV[4])
return 1
