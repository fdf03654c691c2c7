-- Queue a command for the node, which gets it with the answer to its next report.
-- ARGV: 3 the command (JSON), 4 its verb, 5 actor. Returns 1, or 0 if no node has said hello.
-- A command is for the present boot only.
if redis.call('EXISTS', NODE) == 0 then return 0 end
redis.call('RPUSH', COMMANDS, ARGV[3])
redis.call('LTRIM', COMMANDS, -20, -1)
event('command', 'verb', ARGV[4], 'actor', ARGV[5])
return 1
