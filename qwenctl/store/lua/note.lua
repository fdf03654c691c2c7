-- Append an event that no other script writes: the first byte of a wake.
-- ARGV: 3 … field, value, … as `qwenctl.core.events.encode` gives them. Returns 1.
append(unpack(ARGV, 3))
return 1
