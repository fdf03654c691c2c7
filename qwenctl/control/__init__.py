"""Code that holds leases by rule and moves phases."""
