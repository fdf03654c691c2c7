-- Lift one block, or all of them. ARGV: 3 block ('' for all), 4 actor.
-- Returns the names lifted.
local lifted = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', BLOCKS, '(' .. num(NOW), '+inf')) do
  if ARGV[3] == '' or ARGV[3] == name then
    redis.call('ZREM', BLOCKS, name)
    redis.call('HDEL', INFO, name)
    event('unblock', 'name', name, 'actor', ARGV[4])
    lifted[#lifted + 1] = name
  end
end
if #lifted > 0 then changed('block') end
return lifted
