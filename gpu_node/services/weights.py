"""A service's weights on their way from the disk: warmed up, and told of as percent."""

from __future__ import annotations

import os
from collections.abc import Callable

from gpu_node.services.page_cache import WarmUp
from qwenctl.protocol.messages import Progress

__all__ = ["WeightsWatch"]


class WeightsWatch:
    """Warms up a service's weights, and tells how much of them has come off the disk.

    What was in memory from the beginning is not told of: then the disk is not what the service
    waits for. What the service reads itself is not seen.

    Args:
        path: the weights; empty: there is nothing to do.
        tell: called from threads of ours.
    """

    def __init__(self, path: str | os.PathLike[str], tell: Callable[[Progress], None]) -> None:
        self._tell = tell
        self._stopped = False
        self._warm_up = WarmUp(path, self._warmed) if path else None

    def start(self) -> None:
        """Begin; returns at once."""
        if self._warm_up is not None:
            self._warm_up.start()

    def stop(self) -> None:
        """Read no more and tell no more; returns at once. May be called more than once."""
        self._stopped = True
        if self._warm_up is not None:
            self._warm_up.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped or has nothing left to do; whether that is so now. Only after
        `start`."""
        return self._warm_up is None or self._warm_up.join(timeout)

    def _warmed(self, done: int, total: int) -> None:
        assert self._warm_up
        if self._stopped or total <= 0 or not self._warm_up.read:
            return
        percent = round(100 * done / total, 1)
        text = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB read"
        self._tell(Progress(phase="weights", percent=percent, text=text))
