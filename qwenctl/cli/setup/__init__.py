"""Commands that set up the proxy."""
