-- Lift one block, or all of them. ARGV: 3 block ('' for all), 4 actor,
--       5 '1': also forget the instance of earlier settings, which another block says is on.
-- Returns the names lifted. That block is lifted only then, or by its name.
local lifted, forget = {}, ARGV[5] == '1'
for _, name in ipairs(redis.call('ZRANGEBYSCORE', BLOCKS, '(' .. num(NOW), '+inf')) do
  local former = name:sub(1, 7) == 'former:'
  if (ARGV[3] == '' and (forget or not former)) or ARGV[3] == name then
    redis.call('ZREM', BLOCKS, name)
    redis.call('HDEL', INFO, name)
    if former and forget then redis.call('HDEL', STATE, 'started') end
    event('unblock', 'name', name, 'actor', ARGV[4])
    lifted[#lifted + 1] = name
  end
end
if #lifted > 0 then changed('block') end
return lifted
