-- Record the state that the cloud reports, for proxies (the address) and for people (status).
-- ARGV: 3 owner, 4 epoch, 5 observed state, 6 instance id, 7 address, 8 reason, 9 error of the look,
--       10 the configured instance, 11 code of the error,
--       12 its settings (config/started.py; '' if they are not known),
--       13 the address that it keeps while stopped.
-- Returns 'ok' or 'epoch'.
if not holds(ARGV[3], ARGV[4]) then return 'epoch' end
local id, address = ARGV[6], ARGV[7]
local machine = redis.call('HGET', STATE, 'machine') or ''
if ARGV[9] == '' then
  redis.call('HSET', STATE, 'kept_address', ARGV[13])
elseif machine == '' or machine == ARGV[10] then  -- a failed look does not change the address
  id = redis.call('HGET', STATE, 'instance_id') or ''
  if address == '' then address = redis.call('HGET', STATE, 'address') or '' end
  local now_phase = phase()
  if address == '' and now_phase ~= 'off' and now_phase ~= 'failed' then
    address = redis.call('HGET', STATE, 'kept_address') or ''
  end
end
if machine == ARGV[10] and ARGV[12] ~= '' and phase() ~= 'off' and phase() ~= 'failed' then
  redis.call('HSETNX', STATE, 'started', ARGV[12])  -- an earlier version has started it
end
if machine ~= ARGV[10] then
  redis.call('HSET', STATE, 'machine', ARGV[10])
  if ARGV[9] ~= '' then redis.call('HDEL', STATE, 'kept_address') end  -- of the other instance
  if machine ~= '' then redis.call('HSET', STATE, 'machine_since', num(NOW)) end
end
local now = {ARGV[5], id, address, ARGV[8], ARGV[9]}
local before = redis.call('HMGET', STATE, 'observed', 'instance_id', 'address', 'observed_reason', 'observe_error')
redis.call('HSET', STATE, 'observed', ARGV[5], 'instance_id', id, 'address', address,
  'observed_reason', ARGV[8], 'observe_error', ARGV[9], 'observe_code', ARGV[11],
  'observed_at', num(NOW))
if ARGV[9] == '' and (ARGV[5] == 'running' or ARGV[5] == 'starting') then
  redis.call('HSET', STATE, 'serving', id)  -- of several instances
end
if ARGV[9] == '' then
  redis.call('HDEL', STATE, 'unseen_since')
else
  redis.call('HSETNX', STATE, 'unseen_since', num(NOW))
end
for i = 1, 5 do
  if before[i] ~= now[i] then
    changed('observation')
    break
  end
end
return 'ok'
