-- Record a browser's session; beyond the limit, those that expire first end.
-- KEYS of all scripts of sessions:
--   1 sessions      zset  hash of the session's id -> expiry
--   2 session_info  hash  the same hash -> JSON {created, seen}; version: changes with the set
-- ARGV: 3 the session, 4 ttl, 5 limit, 6 new version. Returns the time of its creation.
local function drop(sessions)
  for _, session in ipairs(sessions) do
    redis.call('ZREM', KEYS[1], session)
    redis.call('HDEL', KEYS[2], session)
  end
end
drop(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', num(NOW)))
redis.call('ZADD', KEYS[1], num(NOW + tonumber(ARGV[4])), ARGV[3])
redis.call('HSET', KEYS[2], ARGV[3], cjson.encode({created = NOW, seen = NOW}), 'version', ARGV[6])
drop(redis.call('ZRANGE', KEYS[1], 0, -1 - tonumber(ARGV[5])))
return num(NOW)
