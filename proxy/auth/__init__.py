"""Identify visitors and what they may do."""
