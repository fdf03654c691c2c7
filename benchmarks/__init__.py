"""Measurements of qwenctl against peers, each in one run. See README.md."""
