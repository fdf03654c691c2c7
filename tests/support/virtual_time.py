"""A clock that moves when it is told to."""

from __future__ import annotations

__all__ = ["VirtualClock"]


class VirtualClock:
    """Call it for the time, in seconds; `advance` it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
