"""The commands of administrators, independent of the cloud."""
