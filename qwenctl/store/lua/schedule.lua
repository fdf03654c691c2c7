-- Hold a window of a schedule: a lease (prewarm) or a block (off-hours) until the window ends.
-- ARGV: 3 name of the lease or block, 4 when the window opens (ms), 5 when it ends (ms), 6 reason,
--       7 actor, 8 'lease' or 'block'.
-- Returns 'new', 'held' (known and in force), 'given_up' (a person ended it) or 'over'.
-- Any number of schedulers may call any number of times: the first call writes it, with one event.
-- state keeps the last window of each schedule by its opening (field window:<name>), so that a window
-- that `down` or `unblock` ended stays so. A lease is held under a block too: it counts once the
-- block ends.
local name, opens, ends, kind = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[8]
local zset = kind == 'block' and BLOCKS or LEASES
if ends <= NOW then return 'over' end
local field = 'window:' .. name
local last = tonumber(redis.call('HGET', STATE, field) or '-1')
local expiry = tonumber(redis.call('ZSCORE', zset, name) or '0')
local held = expiry > NOW
if opens <= last then
  if not held then return 'given_up' end
  if opens == last and expiry ~= ends then  -- its duration was changed
    redis.call('ZADD', zset, num(ends), name)
    changed(kind)
  end
  return 'held'
end
redis.call('HSET', STATE, field, num(opens))
if kind == 'lease' and phase() == 'starting' then redis.call('HDEL', STATE, 'cut') end
prune(zset)
redis.call('ZADD', zset, num(ends), name)
redis.call('HSET', INFO, name, cjson.encode({reason = ARGV[6], actor = ARGV[7], since = NOW}))
-- Overlapping windows are one lease that lasts longer.
if not held then
  event(kind, 'name', name, 'cause', ARGV[6], 'actor', ARGV[7], 'expiry', num(ends))
end
changed(kind)
return 'new'
