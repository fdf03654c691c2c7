-- Record the first message of a boot. The signature has been checked; this checks nonce and boot.
-- ARGV: 3 nonce, 4 how long to remember it (ms), 5 boot id, 6 agent version,
--       7 for how long an agent counts as present after a message (ms),
--       8 version of the protocol that the agent speaks, 9 what it could not understand,
--       10 the proxy's own version, 11 and its protocol.
-- Returns {'ok' | 'replay' | 'earlier_boot' | 'unexpected', start_seq}.
-- 'unexpected': the GPU should be off, or another instance of it is present: a fallback candidate that
-- somebody else has started, an old clone. The controller is woken to look at the cloud; if the
-- instance runs, a later hello counts. So does the hello of an instance that has rebooted by itself:
-- the agent of its earlier boot is silent.
-- A boot that was present before the start (state.stranger) is not the instance that was started. Its
-- reports count until that instance says hello: somebody may have started it just before us.
local nonce, boot, alive = ARGV[3], ARGV[5], tonumber(ARGV[7])
local seq = tonumber(redis.call('HGET', STATE, 'start_seq') or 0)
redis.call('ZREMRANGEBYSCORE', NONCES, '-inf', num(NOW))
if redis.call('ZSCORE', NONCES, nonce) then return {'replay', seq} end
redis.call('ZADD', NONCES, num(NOW + tonumber(ARGV[4])), nonce)
if redis.call('HGET', STATE, 'ended_boot') == boot then return {'earlier_boot', seq} end
local now_phase = phase()
if now_phase == 'off' or now_phase == 'stopping' then
  redis.call('HSET', STATE, 'look_at', num(NOW), 'stranger', boot)
  changed('hello')
  return {'unexpected', seq}
end
local known = redis.call('HGET', NODE, 'boot_id')
if known and known ~= boot and known ~= redis.call('HGET', STATE, 'stranger')
  and NOW - tonumber(redis.call('HGET', NODE, 'seen_at') or 0) < alive then
  redis.call('HSET', STATE, 'look_at', num(NOW))
  changed('hello')
  return {'unexpected', seq}
end
if now_phase == 'starting' then redis.call('HSET', STATE, 'look_at', num(NOW)) end
if known ~= boot then
  redis.call('DEL', NODE, COMMANDS)
  event('hello', 'actor', 'node', 'boot_id', boot, 'start_seq', num(seq), 'version', ARGV[6])
end
redis.call('HDEL', STATE, 'refused_code', 'refused_peer', 'refused_why', 'refused_at')
redis.call('HDEL', NODE, 'state')  -- a restarted agent reports its state anew
redis.call('HSET', NODE, 'boot_id', boot, 'start_seq', num(seq), 'hello_at', num(NOW),
  'seen_at', num(NOW), 'version', ARGV[6], 'protocol', ARGV[8],
  'not_understood', ARGV[9], 'proxy_version', ARGV[10], 'proxy_protocol', ARGV[11])
changed('hello')
return {'ok', seq}
