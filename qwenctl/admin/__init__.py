"""What administrators do, whatever the cloud."""
