-- Record which schedules cannot be known, for people. ARGV: 3 what is so ('' if all are known).
-- Returns 1.
if (redis.call('HGET', STATE, 'schedule_trouble') or '') == ARGV[3] then return 1 end
redis.call('HSET', STATE, 'schedule_trouble', ARGV[3])
changed('schedule')
return 1
