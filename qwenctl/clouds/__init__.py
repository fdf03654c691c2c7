"""Where instances live; one folder a cloud."""
