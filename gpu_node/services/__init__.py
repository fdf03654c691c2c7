"""Run the node's services."""
