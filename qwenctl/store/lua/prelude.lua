-- Shared code, put in front of every script when it is loaded.
--
-- KEYS of every script, all with the hash tag of one GPU, so that they lie in one cluster slot:
--   1 state   hash     phase, since, start_seq, began_at, found_at, cause, called_at, ready_at, failure, cut, …
--   2 leases  zset     lease name -> expiry
--   3 blocks  zset     block name -> expiry
--   4 info    hash     lease or block name -> JSON {reason, actor, since}
--   5 lock    hash     owner, epoch, expiry
--   6 node    hash     boot_id, start_seq, state, seen_at, report, …
--   7 nonces  zset     nonce -> expiry
--   8 events  stream   the history
--   9 log     list     the node's last log lines
--   10 commands list   commands for the node of this boot, as JSON
-- ARGV[1] is the time in ms, or -1 for the server's clock; ARGV[2] the channel to publish on. Times
-- are ms since 1970 on that clock; no key ever has a TTL.
local STATE, LEASES, BLOCKS, INFO, LOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local NODE, NONCES, EVENTS, LOG, COMMANDS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local CHANNEL = ARGV[2]
local NOW = tonumber(ARGV[1])
if NOW < 0 then
  local t = redis.call('TIME')
  NOW = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function num(x) return string.format('%.0f', x) end
local function unexpired(zset) return redis.call('ZCOUNT', zset, '(' .. num(NOW), '+inf') end
local function phase() return redis.call('HGET', STATE, 'phase') or 'off' end
local function changed(what) redis.call('PUBLISH', CHANNEL, what) end

-- Append an event to the history; see core/events.py.
local function append(...)
  redis.call('XADD', EVENTS, 'MAXLEN', '~', 5000, '*', 'time', num(NOW), ...)
end
local function event(kind, ...) append('kind', kind, 'v', '1', ...) end

local function prune(zset)
  local gone = redis.call('ZRANGEBYSCORE', zset, '-inf', num(NOW))
  for _, name in ipairs(gone) do
    redis.call('ZREM', zset, name)
    if not redis.call('ZSCORE', LEASES, name) and not redis.call('ZSCORE', BLOCKS, name) then
      redis.call('HDEL', INFO, name)
    end
  end
end

local function is_work(name) return name:sub(1, 9) == 'inflight:' or name:sub(1, 5) == 'busy:' end

local function working()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. num(NOW), '+inf')) do
    if is_work(name) then return true end
  end
  return false
end

-- Whether work can be running in this phase. In `failed`, a bad instance may still be answering a
-- request before its stop; after any other failure there is no instance.
local function may_work(now_phase)
  if now_phase == 'failed' then
    local failure = redis.call('HGET', STATE, 'failure')
    return not failure or failure == '' or cjson.decode(failure).condemns == true
  end
  return now_phase ~= 'off' and now_phase ~= 'starting' and now_phase ~= 'stopping'
end

-- Running work ends with its instance.
local function drop_work()
  for _, name in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
    if is_work(name) then
      redis.call('ZREM', LEASES, name)
      redis.call('HDEL', INFO, name)
    end
  end
end

local function wanted() return unexpired(BLOCKS) == 0 and unexpired(LEASES) > 0 end

-- Give or extend a lease. exact: set the expiry even if that shortens it.
local function grant(name, ttl, reason, actor, exact)
  local before = tonumber(redis.call('ZSCORE', LEASES, name) or 0)
  local expiry = NOW + ttl
  if not exact and before > expiry then expiry = before end
  redis.call('ZADD', LEASES, num(expiry), name)
  if before <= NOW then
    prune(LEASES)
    -- It is needed again, unless its stop goes on all the same; see unneeded.lua.
    local now_phase = phase()
    if now_phase ~= 'stopping' and now_phase ~= 'failed' then
      redis.call('HDEL', NODE, 'unneeded_since')
    end
    redis.call('HSET', INFO, name, cjson.encode({reason = reason, actor = actor, since = NOW}))
    if not is_work(name) then
      event('lease', 'name', name, 'cause', reason, 'actor', actor, 'expiry', num(expiry))
    end
    changed('lease')
  end
end

-- Whether the controller holds the lock now, in this epoch.
local function holds(owner, epoch)
  local lock = redis.call('HMGET', LOCK, 'owner', 'epoch', 'expiry')
  return lock[1] == owner and lock[2] == epoch and tonumber(lock[3] or 0) > NOW
end
