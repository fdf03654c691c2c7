-- Queue something for the node to do; its next report is answered with it.
-- ARGV: 3 the command (JSON), 4 its verb, 5 actor. Returns 1, or 0 if no node has said hello.
-- A command is for the boot that is there now: the next one does not inherit it.
if redis.call('EXISTS', NODE) == 0 then return 0 end
redis.call('RPUSH', COMMANDS, ARGV[3])
redis.call('LTRIM', COMMANDS, -20, -1)
event('command', 'verb', ARGV[4], 'actor', ARGV[5])
return 1
