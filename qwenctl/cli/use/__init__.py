"""Commands of daily use."""
