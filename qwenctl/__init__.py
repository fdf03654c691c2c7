"""qwenctl: a GPU in the cloud that sleeps until somebody needs it."""

__version__ = "0.1.0"
