-- Record a heartbeat, progress or ready callback. The signature has been checked.
-- ARGV: 3 nonce, 4 how long to remember it (ms), 5 boot id, 6 start_seq, 7 state, 8 error,
--       9 progress phase, 10 the report without its log lines (JSON), 11 busy lease,
--       12 its time to live (ms; 0: no work), 13 what the cloud does when it takes the instance back
--       ('' without a notice), 14 in how long (ms), 15 … new log lines.
-- Returns {'ok' | 'replay' | 'other_boot', start_seq, the commands for the node}.
-- An interruption holds for the rest of the boot, even if a restarted agent has not seen it yet.
local nonce, boot, seq, state = ARGV[3], ARGV[5], ARGV[6], ARGV[7]
local busy, busy_ttl = ARGV[11], tonumber(ARGV[12])
redis.call('ZREMRANGEBYSCORE', NONCES, '-inf', num(NOW))
local present = tonumber(redis.call('HGET', STATE, 'start_seq') or 0)
if redis.call('ZSCORE', NONCES, nonce) then return {'replay', present, {}} end
local node = redis.call('HMGET', NODE, 'boot_id', 'start_seq', 'state', 'progress', 'report')
if node[1] ~= boot or node[2] ~= seq then return {'other_boot', present, {}} end
redis.call('ZADD', NONCES, num(NOW + tonumber(ARGV[4])), nonce)

redis.call('HSET', NODE, 'state', state, 'error', ARGV[8], 'progress', ARGV[9],
  'report', ARGV[10], 'seen_at', num(NOW))
if busy_ttl > 0 and may_work(phase()) and state ~= 'stopping' then
  grant(busy, busy_ttl, 'the node reports running work', 'node', true)
elseif redis.call('ZREM', LEASES, busy) == 1 then
  redis.call('HDEL', INFO, busy)
  changed('lease')
end
if ARGV[13] ~= '' and redis.call('HEXISTS', NODE, 'interrupted_at') == 0 then
  local ends = num(NOW + tonumber(ARGV[14]))
  redis.call('HSET', NODE, 'interrupted_at', num(NOW), 'interruption', ARGV[13],
    'interruption_ends', ends)
  event('interruption', 'actor', 'node', 'action', ARGV[13], 'ends', ends)
end
for i = 15, #ARGV do redis.call('RPUSH', LOG, ARGV[i]) end
if #ARGV >= 15 then redis.call('LTRIM', LOG, -2000, -1) end
if node[3] ~= state or node[4] ~= ARGV[9] then
  event('node', 'actor', 'node', 'state', state, 'progress', ARGV[9], 'error', ARGV[8])
end
if node[3] ~= state or node[5] ~= ARGV[10] then changed('report') end
local commands = redis.call('LRANGE', COMMANDS, 0, -1)
redis.call('DEL', COMMANDS)
return {'ok', present, commands}
