-- Take or renew the controller lock of one GPU.
-- ARGV: 3 owner, 4 time to live (ms).
-- Returns {epoch, 1 if newly taken, ms until the present owner's lock expires}; epoch 0: not ours.
-- Taking the lock, not renewing it, raises the epoch. An expired lock is never renewed, only taken
-- anew, even by its old owner: its earlier decisions belong to the old epoch.
local owner, ttl = ARGV[3], tonumber(ARGV[4])
local lock = redis.call('HMGET', LOCK, 'owner', 'epoch', 'expiry')
local left = tonumber(lock[3] or 0) - NOW
if left > 0 and lock[1] ~= owner then return {0, 0, left} end
local epoch = tonumber(lock[2] or 0)
local taken = 0
if left <= 0 then
  epoch = epoch + 1
  taken = 1
end
redis.call('HSET', LOCK, 'owner', owner, 'epoch', num(epoch), 'expiry', num(NOW + ttl))
return {epoch, taken, ttl}
