"""Words for HTTP requests that failed."""

from __future__ import annotations

import sys

import requests

if sys.version_info >= (3, 11):
    pass
else:
    pass

__all__ = [
    "brief_reason",
]

PATIENCE = 5.0
"""Seconds for one connection."""


def brief_reason(error: Exception) -> str:
    """What kind of failure, without the URL or library's names in its text."""
    if isinstance(error, (requests.Timeout, TimeoutError)):
        return "no answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    text = str(error)
    for words, brief in (
        ("refused", "connection refused"),
        ("resolve", "its name is not known"),
        ("Name or service", "its name is not known"),
        ("unreachable", "no route"),
    ):
        if words in text:
            return brief
    return getattr(error, "strerror", None) or type(error).__name__
