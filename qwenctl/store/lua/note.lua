-- Add one event that is no transition: the first byte of a wake, a refused callback.
-- ARGV: 3 kind, then field, value, …
local fields = {}
for i = 4, #ARGV do fields[#fields + 1] = ARGV[i] end
event(ARGV[3], unpack(fields))
return 1
