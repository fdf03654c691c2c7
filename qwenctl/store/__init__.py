"""The state in Redis: leases, phases, events; one Lua script for each operation."""
