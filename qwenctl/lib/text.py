"""Text of strangers, made fit for a terminal."""

from __future__ import annotations

__all__ = ["plain"]


def plain(text: str) -> str:
    """The text without control characters, which could steer the terminal that it is shown in."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
