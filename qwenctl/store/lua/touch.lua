-- Write back a proxy's activity since its last call, at most once a second.
-- ARGV: 3 in-flight lease, 4 its time to live (ms; 0: nothing in flight any more), 5 actor,
--       6 ms since the youngest request in flight began, or had a byte of the node,
--       7 ms that the node has answered nothing that it was asked (0: it has),
--       then for each active client: lease, time to live (ms), ms since its request began.
-- Returns the phase.
-- A request that has outlived its instance counts for nothing: neither in flight nor when it ends.
-- A request that began before a `down` extends nothing when it ends. A request to an instance that the
-- cloud takes back, to finish running work, gives no new lease: that would be for the next start. Nor
-- does the end of a request once the instance is off or stopping: `demand` checks who may wake it.
local inflight, inflight_ttl, actor = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local now_phase = phase()
-- This instance's start, less the age of the snapshot by which a request may have been forwarded.
local began = tonumber(redis.call('HGET', STATE, 'began_at') or 0) - 3000
local alive = inflight_ttl > 0 and NOW - tonumber(ARGV[6]) >= began
if alive and may_work(now_phase) then
  grant(inflight, inflight_ttl, 'requests in flight', actor, true)
  local about = cjson.decode(redis.call('HGET', INFO, inflight) or '{}')
  if about.since then
    about.answered = NOW - tonumber(ARGV[7])
    redis.call('HSET', INFO, inflight, cjson.encode(about))
  end
elseif not alive and redis.call('ZREM', LEASES, inflight) == 1 then
  redis.call('HDEL', INFO, inflight)
  changed('lease')
end
local released = tonumber(redis.call('HGET', STATE, 'released_at') or 0)
local leaves = now_phase == 'off' or now_phase == 'stopping'
  or (now_phase == 'draining' and redis.call('HEXISTS', NODE, 'interrupted_at') == 1)
for i = 8, #ARGV, 3 do
  local held = tonumber(redis.call('ZSCORE', LEASES, place(ARGV[i])) or 0) > NOW
  local asked = NOW - tonumber(ARGV[i + 2])
  if asked > released and asked >= began and (held or not leaves) then
    grant(ARGV[i], tonumber(ARGV[i + 1]), 'request', '', false) -- its name says whose it is
  end
end
return now_phase
