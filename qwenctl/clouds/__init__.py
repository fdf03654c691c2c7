"""The providers of instances: one folder a cloud, and what they share."""
