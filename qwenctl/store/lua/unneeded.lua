-- Tell the node for how long nobody has needed it, so that it can stop itself where no proxy can.
-- ARGV: 3 boot id.
-- Returns milliseconds since the first message of this boot that found so; 0: it is needed, or it is
-- another boot. A stop that has begun is finished whatever is wanted meanwhile, and so is that of a
-- bad instance, once no work runs on it.
if redis.call('HGET', NODE, 'boot_id') ~= ARGV[3] then return 0 end
local state = redis.call('HMGET', STATE, 'phase', 'failure')
local bad = state[1] == 'failed' and state[2] and state[2] ~= '' and cjson.decode(state[2]).condemns
if state[1] ~= 'stopping' and (working() or (wanted() and not bad)) then
  redis.call('HDEL', NODE, 'unneeded_since')
  return 0
end
redis.call('HSETNX', NODE, 'unneeded_since', num(NOW))
return math.max(0, NOW - tonumber(redis.call('HGET', NODE, 'unneeded_since')))
