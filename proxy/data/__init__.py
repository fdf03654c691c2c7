"""The data plane: forward, hold, wake."""
