"""Commands that set up a cloud."""
