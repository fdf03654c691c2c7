"""Bodies of the commands for daily use."""
