-- Move one GPU from one phase to the next, if the controller leads and the guard holds.
-- ARGV: 3 owner, 4 epoch, 5 from, 6 to, 7 guard, 8 drain (ms), 9 cause, 10 failure (JSON or ''),
--       11 idle timeout (ms), 12 '1' to adopt: grant one idle timeout too,
--       13 by which settings (config/started.py; '' if that is not known).
-- Returns 'ok', or why not: 'epoch' (no longer the leader), 'phase' (it has changed since), 'guard'
-- (it no longer holds).
local owner, epoch, from, to, guard = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local drain, cause, failure, idle = tonumber(ARGV[8]), ARGV[9], ARGV[10], tonumber(ARGV[11])
if not holds(owner, epoch) then return 'epoch' end
if phase() ~= from then return 'phase' end

local since = tonumber(redis.call('HGET', STATE, 'since') or 0)
local drained = NOW - since >= drain
if guard == 'wanted' and not wanted() then return 'guard' end
if guard == 'unwanted' and wanted() then return 'guard' end
if guard == 'idle' and (wanted() or working() or not drained) then return 'guard' end
if guard == 'no_work' and (working() or not drained) then return 'guard' end

if ARGV[12] == '1' then grant('adopted:' .. owner, idle, cause, owner, false) end
redis.call('HSET', STATE, 'phase', to, 'since', num(NOW), 'cause', cause, 'actor', owner,
  'epoch', epoch, 'failure', failure)
local called = redis.call('HGET', STATE, 'called_at')
redis.call('HDEL', STATE, 'called_at', 'call_error', 'call_code', 'refused_since')
-- A `down --now` may have come since the controller decided to begin the stop anew.
local stopped = from == 'stopping' and cause ~= 'stop_unfinished'
if stopped then redis.call('HDEL', STATE, 'cut') end

-- What is or may be on can be stopped later only by the settings that it was started by.
local bad = to == 'failed' and failure ~= '' and cjson.decode(failure).condemns and not stopped
local over = to == 'failed' and not bad and not (from == 'starting' and called)
if to == 'off' or over then
  redis.call('HDEL', STATE, 'started')
elseif to ~= 'failed' and ARGV[13] ~= '' then
  redis.call('HSET', STATE, 'started', ARGV[13])
end

if to == 'starting' then
  redis.call('HINCRBY', STATE, 'start_seq', 1)
  -- Of several instances the start may choose another: none serves until a look sees it on.
  redis.call('HSET', STATE, 'began_at', num(NOW), 'serving', '')
  redis.call('HDEL', STATE, 'ready_at', 'cut', 'start_note', 'found_at')
  redis.call('DEL', NODE, COMMANDS)
  drop_work()
elseif to == 'booting' and (from == 'off' or from == 'failed') then
  redis.call('HDEL', STATE, 'stranger')  -- found running: this instance counts
  -- Since then, not now: an emptied or stale store finds the instance of requests that still run.
  if from == 'off' then redis.call('HSET', STATE, 'began_at', num(since)) end
  redis.call('HSET', STATE, 'found_at', num(NOW))
elseif to == 'ready' and from == 'loading' and not redis.call('HGET', STATE, 'ready_at') then
  redis.call('HSET', STATE, 'ready_at', num(NOW))
  -- The first time in this boot: each waiting client gets exactly one idle timeout from now on,
  -- however long the boot took or was expected to take. A service that crashes and comes back later
  -- extends nothing.
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. num(NOW), '+inf')) do
    if name:sub(1, 8) == 'request:' then redis.call('ZADD', LEASES, num(NOW + idle), name) end
  end
elseif to == 'stopping' then
  if redis.call('HGET', STATE, 'cut') then drop_work() end
elseif to == 'off' then
  drop_work()
  redis.call('HDEL', STATE, 'cut', 'ready_at', 'start_note', 'found_at')
  -- A boot that we stopped has ended for good; a boot that stopped outside may come back.
  local boot = redis.call('HGET', NODE, 'boot_id')
  if boot and from == 'stopping' then redis.call('HSET', STATE, 'ended_boot', boot) end
  redis.call('DEL', NODE, COMMANDS)
elseif to == 'failed' and failure ~= '' and not bad then
  -- The node's record has no instance any more; its last report is none of life.
  local boot = redis.call('HGET', NODE, 'boot_id')
  if boot and stopped then redis.call('HSET', STATE, 'ended_boot', boot) end
  redis.call('DEL', NODE, COMMANDS)
  drop_work()
end
if to == 'off' or to == 'failed' then
  prune(LEASES)
  prune(BLOCKS)
end
event('transition', 'from', from, 'to', to, 'cause', cause, 'actor', owner, 'epoch', epoch,
  'failure', failure)
changed('phase')
return 'ok'
