"""When something else is the data plane."""
