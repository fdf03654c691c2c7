-- Take an attempt to sign in back, which was right, and remember the network; see sign_in.
-- ARGV: 3 the network, 4 ttl, 5 limit of networks, 6… pairs of bucket and ms per attempt.
for i = 6, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[4], ARGV[i]) then
    redis.call('ZINCRBY', KEYS[4], -tonumber(ARGV[i + 1]), ARGV[i])
  end
end
redis.call('ZADD', KEYS[5], num(NOW + tonumber(ARGV[4])), ARGV[3])
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -1 - tonumber(ARGV[5]))
