"""What the agent reads of the machine."""
