"""The protocol between node and proxy."""
