"""Whoever writes leases or moves phases."""
