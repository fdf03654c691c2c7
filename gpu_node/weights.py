"""A service's weights on their way from the disk: warmed up, and told of as percent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from gpu_node.warmup import WarmUp, WeightFile, resident_bytes, weight_files
from qwenctl.wire import Progress

__all__ = ["WeightsWatch", "bytes_read_by", "bytes_resident", "weights_percent"]

LOOK_INTERVAL = 2.0
"""Seconds between two looks at the page cache, once our own reading is over."""

STEP = 256 * 1024 * 1024
"""How much of a file is looked at at once, in bytes."""


def weights_percent(total: int, *seen: int | None) -> float | None:
    """How much of ``total`` bytes has come off the disk: the most that any way of seeing it says.

    None if there is nothing to read or nobody can tell.
    """
    known = [count for count in seen if count is not None]
    if total <= 0 or not known:
        return None
    return min(100.0, max(0.0, 100.0 * max(known) / total))


def bytes_resident(files: Iterable[WeightFile]) -> int | None:
    """How many bytes of these files are in the page cache; None if the kernel tells of none."""
    resident: int | None = None
    for file in files:
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            for offset in range(0, file.size, STEP):
                found = resident_bytes(descriptor, offset, min(STEP, file.size - offset))
                if found is not None:
                    resident = (resident or 0) + found
        finally:
            os.close(descriptor)
    return resident


def bytes_read_by(pid: int) -> int | None:
    """What a process and its descendants have read off disks (``read_bytes`` of /proc/PID/io).

    What was in the page cache already does not count. None if we may not see it.
    """
    total: int | None = None
    try:
        first = psutil.Process(pid)
        processes = [first, *first.children(recursive=True)]
    except psutil.Error:
        return None
    for process in processes:
        try:
            total = (total or 0) + process.io_counters().read_bytes
        except (psutil.Error, AttributeError):
            continue
    return total


class WeightsWatch:
    """Warms up a service's weights, and tells how much of them has come off the disk.

    What was in memory from the beginning is not told of: then the disk is not what the service
    waits for.

    Args:
        path: the weights; empty: there is nothing to do.
        tell: called from threads of ours.
        pid: the service's first process, if it has one by now, to see what it reads itself.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tell: Callable[[Progress], None],
        pid: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._path = path
        self._tell = tell
        self._pid = pid
        self._stop = threading.Event()
        self._warm_up = WarmUp(path, self._warmed) if path else None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        if self._warm_up is not None:
            self._warm_up.start()
            self._thread = threading.Thread(target=self._watch, name="weights", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Read no more and tell no more; returns at once. May be called more than once."""
        self._stop.set()
        if self._warm_up is not None:
            self._warm_up.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped or has nothing left to do; whether that is so now."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _warmed(self, done: int, total: int) -> None:
        assert self._warm_up
        if self._warm_up.read:
            self._say(total, done)

    def _watch(self) -> None:
        """After the warm-up: the rest, which the service reads itself."""
        assert self._warm_up
        self._warm_up.join()
        if self._stop.is_set() or self._warm_up.done >= self._warm_up.total:
            return
        files = weight_files(Path(self._path))
        total = sum(file.size for file in files)
        while not self._stop.wait(LOOK_INTERVAL):
            pid = self._pid()
            read = None if pid is None else bytes_read_by(pid)
            if read is not None:  # what we read is no longer read off the disk by the service
                read += self._warm_up.read
            resident = bytes_resident(files)
            self._say(total, self._warm_up.done, resident, read)
            if resident is not None and resident >= total:
                return

    def _say(self, total: int, *seen: int | None) -> None:
        percent = weights_percent(total, *seen)
        if percent is None or self._stop.is_set():
            return
        text = f"{percent * total / 100 / 1e9:.1f} of {total / 1e9:.1f} GB read"
        self._tell(Progress(phase="weights", percent=round(percent, 1), text=text))
