"""HTTP, whatever it is used for."""
