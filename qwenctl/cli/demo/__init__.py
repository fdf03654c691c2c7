"""`qwenctl demo`."""
