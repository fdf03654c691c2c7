-- Turn a request that may wake or use the GPU into a lease.
-- ARGV: 3 lease, 4 time to live (ms), 5 reason, 6 actor, 7 in-flight lease ('' for none),
--       8 its time to live (ms), 9 '1': may wake, '0': may only use what is on,
--       10 ms since the request began.
-- Returns {phase, start_seq, name of the block in force or '', 1 if given up by a later `down`}.
-- It makes the one transition that no controller makes: draining -> ready, so that no request is ever
-- forwarded into a stop. While the service is not ready, the phase stays `draining`; a controller
-- sees the lease and decides. (A bad instance never drains: it is `failed`.) An instance that the
-- cloud takes back stays draining too: the lease is for the next start, and a client that may not
-- wake gets none.
local lease, ttl, reason, actor = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local inflight, inflight_ttl, may_wake = ARGV[7], tonumber(ARGV[8]), ARGV[9] == '1'
local now_phase = phase()
local state = redis.call('HMGET', STATE, 'start_seq', 'failure')
local seq = tonumber(state[1] or 0)

if unexpired(BLOCKS) > 0 then
  local first = redis.call('ZRANGEBYSCORE', BLOCKS, '(' .. num(NOW), '+inf', 'LIMIT', 0, 1)
  return {now_phase, seq, first[1], 0}
end
if not may_wake and now_phase ~= 'ready' and now_phase ~= 'draining' then
  return {now_phase, seq, '', 0}
end
if NOW - tonumber(ARGV[10]) < tonumber(redis.call('HGET', STATE, 'released_at') or 0) then
  return {now_phase, seq, '', 1}
end
if now_phase == 'starting' then redis.call('HDEL', STATE, 'cut') end
local node = redis.call('HMGET', NODE, 'state', 'interrupted_at')
local leaves = node[2]  -- the cloud takes the instance back
local cut = redis.call('HEXISTS', STATE, 'cut') == 1  -- it is stopped first, whatever is wanted
if now_phase == 'draining' and node[1] == 'ready' and not leaves and not cut then
  redis.call('HSET', STATE, 'phase', 'ready', 'since', num(NOW), 'cause', 'demand', 'actor', actor)
  redis.call('HDEL', STATE, 'called_at')
  event('transition', 'from', 'draining', 'to', 'ready', 'cause', 'demand', 'actor', actor,
    'epoch', redis.call('HGET', LOCK, 'epoch') or '0', 'failure', state[2] or '')
  changed('phase')
  now_phase = 'ready'
end
if may_wake or not leaves then grant(lease, ttl, reason, actor, false) end
if inflight ~= '' and now_phase == 'ready' then
  grant(inflight, inflight_ttl, 'requests in flight', actor, true)
end
return {now_phase, seq, '', 0}
