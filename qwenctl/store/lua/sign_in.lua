-- Count an attempt to sign in, unless there were too many (GCRA: a bucket's score is the time at
-- which it will be empty). KEYS beside those of the sessions:
--   4 sign_ins       zset  bucket -> time at which it is empty
--   5 known_networks zset  network from which somebody has signed in -> expiry
-- ARGV: 3 the network, 4 whether the last bucket, all networks together, does not count,
-- 5 whether to count the attempt, 6… triples of bucket, burst and ms per attempt.
-- Returns for how many ms it is refused.
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', num(NOW))
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', num(NOW))
local last = #ARGV
if ARGV[4] == '1' or redis.call('ZSCORE', KEYS[5], ARGV[3]) then last = last - 3 end
local wait, count = 0, {}
for i = 6, last, 3 do
  local every = tonumber(ARGV[i + 2])
  local full = ARGV[i + 1] * every
  local empty = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[i]) or NOW)
  if empty > NOW + full then -- the clock was set back
    empty = NOW + full
    redis.call('ZADD', KEYS[4], num(empty), ARGV[i])
  end
  wait = math.max(wait, empty + every - full - NOW)
  count[#count + 1] = {num(empty + every), ARGV[i]}
end
if wait <= 0 and ARGV[5] == '1' then
  for _, pair in ipairs(count) do redis.call('ZADD', KEYS[4], pair[1], pair[2]) end
end
return num(math.max(wait, 0))
