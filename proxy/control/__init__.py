"""Pages, API and node messages."""
