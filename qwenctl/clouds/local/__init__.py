"""Instances that are processes on this machine."""
