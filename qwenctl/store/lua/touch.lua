-- Write back a proxy's activity since its last call, at most once a second.
-- ARGV: 3 in-flight lease, 4 its time to live (ms; 0: nothing in flight any more), 5 actor, then
--       for each active client: lease, time to live (ms), ms since its request began.
-- Returns the phase.
-- A request that began before a `down` extends nothing when it ends. A request to an instance that the
-- cloud takes back, to finish running work, gives no new lease: that would be for the next start. Nor
-- does the end of a request once the instance is off or stopping: `demand` checks who may wake it.
local inflight, inflight_ttl, actor = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local now_phase = phase()
-- In `failed` too: a bad instance may still be answering a request before its stop.
local on = now_phase ~= 'off' and now_phase ~= 'starting' and now_phase ~= 'stopping'
if inflight_ttl > 0 and on then
  grant(inflight, inflight_ttl, 'requests in flight', actor, true)
elseif inflight_ttl == 0 and redis.call('ZREM', LEASES, inflight) == 1 then
  redis.call('HDEL', INFO, inflight)
  changed('lease')
end
local released = tonumber(redis.call('HGET', STATE, 'released_at') or 0)
local leaves = now_phase == 'off' or now_phase == 'stopping'
  or (now_phase == 'draining' and redis.call('HEXISTS', NODE, 'interrupted_at') == 1)
for i = 6, #ARGV, 3 do
  local held = tonumber(redis.call('ZSCORE', LEASES, ARGV[i]) or 0) > NOW
  if NOW - tonumber(ARGV[i + 2]) > released and (held or not leaves) then
    grant(ARGV[i], tonumber(ARGV[i + 1]), 'request', actor, false)
  end
end
return now_phase
