"""An event loop under virtual time, which runs what is due and returns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.virtual_time import VirtualClock

__all__ = ["VirtualLoop"]


TICK = 1e-6
"""Seconds by which a timer is late: a float of today's date is hardly finer."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time is that of a `VirtualClock`; what belongs into threads runs at once."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._virtual = clock
        self._clock_resolution = 0.0  # no timer is early

    def time(self) -> float:
        return self._virtual()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    @property
    def due(self) -> float:
        """When there is something to do: now, at the next timer, or never."""
        if self._ready:  # type: ignore[attr-defined]
            return self.time()
        timers = (timer.when() for timer in self._scheduled if not timer.cancelled())  # type: ignore[attr-defined]
        return min(timers, default=float("inf")) + TICK

    def run_due(self) -> None:
        """Run everything that is due now."""
        for _ in range(10_000):
            if self.due > self.time():
                return
            self.call_soon(self.stop)
            self.run_forever()
        raise AssertionError("the loop does not come to rest")
