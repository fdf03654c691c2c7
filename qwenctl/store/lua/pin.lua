-- Hold a lease for a given time, which may shorten it: `up --for`, prewarm.
-- ARGV: 3 lease, 4 time to live (ms), 5 reason, 6 actor, 7 '1': exactly, '0': at least.
-- Returns {phase, name of the block in force or ''}; nothing is leased under a block.
if unexpired(BLOCKS) > 0 then
  local first = redis.call('ZRANGEBYSCORE', BLOCKS, '(' .. num(NOW), '+inf', 'LIMIT', 0, 1)
  return {phase(), first[1]}
end
if phase() == 'starting' then redis.call('HDEL', STATE, 'cut') end
grant(ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7] == '1')
changed('lease')
return {phase(), ''}
