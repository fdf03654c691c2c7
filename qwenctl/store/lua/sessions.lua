-- Look at the browsers' sessions; see begin_session.
-- ARGV: 3 the version that the caller knows, 4… sessions seen lately.
-- Returns {now, version}, and as a third the sessions unless the version is the known one.
for i = 4, #ARGV do
  local info = redis.call('HGET', KEYS[2], ARGV[i])
  if info then
    local created = cjson.decode(info).created
    redis.call('HSET', KEYS[2], ARGV[i], cjson.encode({created = created, seen = NOW}))
  end
end
local version = redis.call('HGET', KEYS[2], 'version') or ''
if version == ARGV[3] then return {num(NOW), version} end
return {num(NOW), version, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. num(NOW), '+inf')}
