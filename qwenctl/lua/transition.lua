-- Move one GPU from one phase to the next, if the mover may and the guard holds.
-- ARGV: 3 owner, 4 epoch, 5 from, 6 to, 7 guard, 8 drain (ms), 9 cause, 10 failure (JSON or ''),
--       11 idle timeout (ms), 12 '1' to adopt: grant one idle timeout in the same breath.
-- Returns 'ok', or why not: 'epoch' (no longer the leader), 'phase' (somebody else moved it),
-- 'guard' (the reason for the move is gone).
local owner, epoch, from, to, guard = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local drain, cause, failure, idle = tonumber(ARGV[8]), ARGV[9], ARGV[10], tonumber(ARGV[11])
if not holds(owner, epoch) then return 'epoch' end
if phase() ~= from then return 'phase' end

local drained = NOW - tonumber(redis.call('HGET', STATE, 'since') or 0) >= drain
if guard == 'wanted' and not wanted() then return 'guard' end
if guard == 'unwanted' and wanted() then return 'guard' end
if guard == 'idle' and (wanted() or working() or not drained) then return 'guard' end
if guard == 'no_work' and (working() or not drained) then return 'guard' end

if ARGV[12] == '1' then grant('adopted:' .. owner, idle, cause, owner, false) end
redis.call('HSET', STATE, 'phase', to, 'since', num(NOW), 'cause', cause, 'actor', owner,
  'epoch', epoch, 'failure', failure)
redis.call('HDEL', STATE, 'called_at', 'call_error')

if to == 'starting' then
  redis.call('HINCRBY', STATE, 'start_seq', 1)
  redis.call('HDEL', STATE, 'ready_at', 'cut')
  redis.call('DEL', NODE)
elseif to == 'ready' and from == 'loading' then
  redis.call('HSET', STATE, 'ready_at', num(NOW))
  -- Who waited through the boot gets one idle timeout from now on: no less, however long the boot
  -- took, and no more, however long it was expected to take. A pin lasts as long as was asked.
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. num(NOW), '+inf')) do
    local expiry = tonumber(redis.call('ZSCORE', LEASES, name))
    if name:sub(1, 8) == 'request:' or (name:sub(1, 4) == 'pin:' and expiry < NOW + idle) then
      redis.call('ZADD', LEASES, num(NOW + idle), name)
    end
  end
elseif to == 'stopping' then
  if redis.call('HGET', STATE, 'cut') then
    -- What proxies renewed since the cut. Demand that came after it stays: it starts the GPU anew.
    for _, name in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
      if is_work(name) then redis.call('ZREM', LEASES, name) end
    end
    redis.call('HDEL', STATE, 'cut')
  end
elseif to == 'off' or to == 'failed' then
  if to == 'off' then
    redis.call('HDEL', STATE, 'cut', 'ready_at')
    local boot = redis.call('HGET', NODE, 'boot_id')
    if boot then redis.call('HSET', STATE, 'ended_boot', boot) end
    redis.call('DEL', NODE)
  end
  prune(LEASES)
  prune(BLOCKS)
end
event('transition', 'from', from, 'to', to, 'cause', cause, 'actor', owner, 'epoch', epoch,
  'failure', failure)
changed('phase')
return 'ok'
