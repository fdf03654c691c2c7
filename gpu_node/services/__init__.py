"""What the node runs."""
