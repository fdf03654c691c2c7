"""Read a service's weights into the page cache, and report how much has been read."""

from __future__ import annotations

import os
from collections.abc import Callable

from gpu_node.services.page_cache import WarmUp
from qwenctl.protocol.messages import Progress


class WeightsWatch:
    """Warms up a service's weights, and reports the part that has been read.

    Nothing is reported while all was in memory already: then the service does not wait for the
    disk. Reads of the service itself are not seen.

    Args:
        path: the weights; empty: there is nothing to do.
        report: takes the progress, from other threads.
    """

    def __init__(self, path: str | os.PathLike[str], report: Callable[[Progress], None]) -> None:
        self._report = report
        self._stopped = False
        self._warm_up = WarmUp(path, self._warmed) if path else None

    def start(self) -> None:
        """Begin; returns at once."""
        if self._warm_up is not None:
            self._warm_up.start()

    def stop(self) -> None:
        """Read and report no more; returns at once. May be called more than once."""
        self._stopped = True
        if self._warm_up is not None:
            self._warm_up.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it has come. Only after `start`."""
        return self._warm_up is None or self._warm_up.join(timeout)

    def _warmed(self, done: int, total: int) -> None:
        assert self._warm_up
        if self._stopped or total <= 0 or not self._warm_up.read:
            return
        percent = round(100 * done / total, 1)
        text = f"{done / 1e9:.1f} of {total / 1e9:.1f} GB read"
        self._report(Progress(phase="weights", percent=percent, text=text))
