-- Record that the cloud accepted, may have accepted or refused the call of the present phase.
-- ARGV: 3 owner, 4 epoch, 5 phase, 6 verb, 7 request id, 8 error ('' if accepted),
--       9 note about the start, for people, 10 code of the error.
-- Returns 'ok', 'epoch' or 'phase'.
if not holds(ARGV[3], ARGV[4]) then return 'epoch' end
if phase() ~= ARGV[5] then return 'phase' end
redis.call('HSET', STATE, 'called_at', num(NOW), 'call_error', ARGV[8], 'call_code', ARGV[10])
if ARGV[8] == '' then
  redis.call('HDEL', STATE, 'refused_since')
  if ARGV[6] == 'start' then
    redis.call('HSET', STATE, 'accepted_seq', redis.call('HGET', STATE, 'start_seq') or '0')
  end
else
  redis.call('HSETNX', STATE, 'refused_since', num(NOW))
end
if ARGV[6] == 'start' then redis.call('HSET', STATE, 'start_note', ARGV[9]) end
event('call', 'verb', ARGV[6], 'actor', ARGV[3], 'epoch', ARGV[4], 'request_id', ARGV[7], 'error', ARGV[8],
  'note', ARGV[9])
changed('call')
return 'ok'
