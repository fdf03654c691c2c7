"""Redis: leases, phases, events; one Lua script an operation."""
