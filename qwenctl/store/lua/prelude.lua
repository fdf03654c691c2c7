-- Shared code, put in front of every script when it is loaded.
--
-- KEYS of every script, all with the hash tag of one GPU, so that they lie in one cluster slot:
--   1 state   hash     phase, since, start_seq, began_at, found_at, cause, called_at, ready_at, failure, cut, …
--   2 leases  zset     lease name -> expiry
--   3 blocks  zset     block name -> expiry
--   4 info    hash     lease or block name -> JSON {reason, actor, since}
--   5 lock    hash     owner, epoch, expiry; time, gap_from, gap_to, steps: of the clock, see
--                      docs/decisions/0012-steps-of-the-clock.md
--   6 node    hash     boot_id, start_seq, state, seen_at, report, …
--   7 nonces  zset     nonce -> expiry
--   8 events  stream   the history
--   9 log     list     the node's last log lines
--   10 commands list   commands for the node of this boot, as JSON
--   11 repeats list    the ids of the latest events `lease` that woke nothing
-- ARGV[1] is the time in ms, or -1 for the server's clock, and after a colon the latest time that the
-- caller's monotonic clock allows; ARGV[2] the channel to publish on. Times are ms since 1970 on that
-- clock; no key ever has a TTL.
local STATE, LEASES, BLOCKS, INFO, LOCK = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local NODE, NONCES, EVENTS, LOG, COMMANDS = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local REPEATS = KEYS[11]
local MANY = 256  -- so many leases, and requests of further clients share those of their networks
local MANY_REPEATS = 100
local CHANNEL = ARGV[2]
local given, latest = ARGV[1]:match('^(-?%d+):?(%d*)$')
local NOW = tonumber(given)
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
  return redis.call('XADD', EVENTS, 'MAXLEN', '~', 5000, '*', 'time', num(NOW), ...)
end
local function event(kind, ...) return append('kind', kind, 'v', '1', ...) end

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

-- The network of an address, /24 or /64; nothing of a name that is no address.
local function network(client)
  local v4 = client:match('^(%d+%.%d+%.%d+)%.%d+$') or client:match('^::ffff:(%d+%.%d+%.%d+)%.%d+$')
  if v4 then return v4 .. '.0/24' end
  if not client:find('^[%x:]+$') or not client:find(':') then return nil end
  local head, tail = client:match('^(.-)::(.*)$')
  local groups, last = {}, {}
  for group in (head or client):gmatch('%x+') do groups[#groups + 1] = group end
  for group in (tail or ''):gmatch('%x+') do last[#last + 1] = group end
  while #groups + #last < 8 do groups[#groups + 1] = '0' end
  for _, group in ipairs(last) do groups[#groups + 1] = group end
  return table.concat(groups, ':', 1, 4) .. '::/64'
end

-- The lease that a request's demand extends: its client's, or once there are many its network's, so
-- that a flood of clients cannot make the state large. Keys and members are known, and few.
local function place(name)
  local tenant, client = name:match('^request:(.-/?)([^/]*)$')
  if not client or client:find('^key:') or client:find('^member:') then return name end
  if tonumber(redis.call('ZSCORE', LEASES, name) or 0) > NOW then return name end
  if redis.call('ZCARD', LEASES) >= MANY then prune(LEASES) end
  if redis.call('ZCARD', LEASES) < MANY then return name end
  local shared = 'request:' .. tenant .. (network(client:match('^[^#]*')) or 'others')
  if tonumber(redis.call('ZSCORE', LEASES, shared) or 0) > NOW then return shared end
  return redis.call('ZCARD', LEASES) < 2 * MANY and shared or 'request:others'
end

-- Give or extend a lease. exact: set the expiry even if that shortens it.
local function grant(name, ttl, reason, actor, exact)
  local own, repeated = name, wanted()
  name = place(own)
  if name ~= own then actor = name:sub(9) end
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
      local id = event('lease', 'name', name, 'cause', reason, 'actor', actor, 'expiry', num(expiry))
      if repeated and name:sub(1, 8) == 'request:' then
        -- However many there are, they push nothing else out of the history.
        if redis.call('RPUSH', REPEATS, id) > MANY_REPEATS then
          redis.call('XDEL', EVENTS, redis.call('LPOP', REPEATS))
        end
      end
    end
    changed('lease')
  end
end

-- Whether the controller holds the lock now, in this epoch.
local function holds(owner, epoch)
  local lock = redis.call('HMGET', LOCK, 'owner', 'epoch', 'expiry')
  return lock[1] == owner and lock[2] == epoch and tonumber(lock[3] or 0) > NOW
end

-- Move every stored time that counts from a moment before a step of the clock. What was set by the
-- wall clock stays: windows of schedules, and the history.
local function shift(by)
  local function shifted_fields(hash)
    local all = redis.call('HGETALL', hash)
    for i = 1, #all, 2 do
      local field, value = all[i], tonumber(all[i + 1])
      local is_time = field == 'since' or field == 'expiry' or field:find('_at$')
        or field:find('_since$') or field == 'interruption_ends'
      if is_time and value then redis.call('HSET', hash, field, num(value + by)) end
    end
  end
  for _, zset in ipairs({LEASES, BLOCKS, NONCES}) do
    local all = redis.call('ZRANGE', zset, 0, -1, 'WITHSCORES')
    for i = 1, #all, 2 do
      local kind = all[i]:match('^[^:]*')
      local by_wall = kind == 'prewarm' or kind == 'off-hours' or kind == 'budget'
      if not by_wall and not all[i + 1]:find('inf') then redis.call('ZINCRBY', zset, num(by), all[i]) end
    end
  end
  for _, hash in ipairs({STATE, LOCK, NODE}) do shifted_fields(hash) end
  local failure = redis.call('HGET', STATE, 'failure')
  if failure and failure ~= '' then
    local about = cjson.decode(failure)
    about.retry_at = about.retry_at + by / 1000
    redis.call('HSET', STATE, 'failure', cjson.encode(about))
  end
  local all = redis.call('HGETALL', INFO)
  for i = 1, #all, 2 do
    local about = cjson.decode(all[i + 1])
    about.since = about.since + by
    if about.answered then about.answered = about.answered + by end
    redis.call('HSET', INFO, all[i], cjson.encode(about))
  end
  redis.call('HINCRBY', LOCK, 'steps', 1)
  redis.call('HDEL', LOCK, 'gap_from', 'gap_to')
  event('clock', 'actor', 'store', 'step', num(by))
  changed('clock')
end

if COMMANDS then  -- a script of one GPU
  local seen = redis.call('HMGET', LOCK, 'time', 'gap_from', 'gap_to')
  local last = tonumber(seen[1] or NOW)
  if not seen[1] or math.abs(NOW - last) >= 1000 then
    local noted = redis.pcall('HSET', LOCK, 'time', num(NOW))
    if type(noted) == 'table' and noted.err then
      -- A full memory or disk refuses it too, and reads go on.
      if noted.err:find('READONLY') then
        return redis.error_reply("READONLY You can't write against a read only replica.")
      end
    elseif NOW <= last - 1000 then
      -- Time does not go back, so that this is a step. The caller may know how long ago `last` was.
      local expected = tonumber(latest ~= '' and latest or last) - 1000
      if expected < last or expected - last > 60000 then expected = last end
      shift(NOW - expected)
    elseif NOW - last >= 2000 then
      -- A step ahead, or nobody ran a script: only a caller's own clock can tell.
      local gap = tonumber(seen[3] or 0) - tonumber(seen[2] or 0)
      if NOW - last >= gap or NOW - tonumber(seen[3]) > 60000 then
        redis.call('HSET', LOCK, 'gap_from', num(last), 'gap_to', num(NOW))
      end
    end
  end
  if latest ~= '' and NOW > tonumber(latest) then
    return redis.error_reply('CLOCKSTEP the time is later than the caller expects')
  end
end
