"""Notice steps ahead of the store's clock, by this process's monotonic clock.

A step back is noticed by the scripts themselves. A step ahead looks to them like a time in which
nobody called, so each call carries the latest time that it expects, and a script that finds a later
one does nothing (docs/decisions/0012-steps-of-the-clock.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

TOLERANCE = 1.0
"""By how many seconds two clocks may differ; a drain has no more to spare."""

PRECISE = 0.5
"""How long a reading may take to be relied on later, in seconds."""


@dataclass(frozen=True)
class Reading:
    """The store's clock, read between two moments of ours."""

    now: float
    """Seconds on the store's clock."""
    steps: int
    """How many steps had been absorbed."""
    sent: float
    received: float


def step_between(before: Reading, after: Reading) -> float:
    """Return by how many seconds the store's clock has stepped ahead for sure, or 0."""
    passed = after.now - before.now
    if passed - (after.received - before.sent) <= TOLERANCE:
        return 0.0
    return passed - (after.sent + after.received - before.sent - before.received) / 2


def elapsed() -> float:
    """Return a monotonic clock in seconds, which goes on while the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux only; clock_gettime(2)
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class ClockGuard:
    """The last reliable reading of each GPU's clock; thread-safe."""

    def __init__(self, monotonic: Callable[[], float] = elapsed) -> None:
        self.monotonic = monotonic
        self._readings: dict[str, Reading] = {}

    def last(self, gpu: str) -> Reading | None:
        return self._readings.get(gpu)

    def note(self, gpu: str, reading: Reading) -> None:
        """Rely on this reading from now on, unless it took too long."""
        if reading.received - reading.sent <= PRECISE:
            self._readings[gpu] = reading

    def forget(self, gpu: str) -> None:
        """Rely on no earlier reading."""
        self._readings.pop(gpu, None)

    def latest(self, gpu: str) -> float | None:
        """Return the latest time that the store's clock may show now; None if that is not known."""
        known = self._readings.get(gpu)
        return None if known is None else known.now + self.monotonic() - known.sent + TOLERANCE
