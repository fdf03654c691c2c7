"""Kill what outlives the agent, however the agent ends.

In two ways. While the agent lives, a small shell process (1 MB) holds the other end of a pipe; when
the agent is killed the pipe breaks and the shell kills the process groups that it read last. And
every service carries a mark in its environment, so that what left its group, or outlived that shell
too, is found and killed at the agent's next start. A process id may be used again by another
program; the mark may not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

MARK = "QWENCTL_NODE_OWNER"
"""The environment variable that names the agent of a service."""

_SCRIPT = """
trap '' HUP INT TERM
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""


class OrphanKiller:
    """Kills the process groups added to it when this process is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, group: int) -> None:
        """Kill this group, too."""
        with self._lock:
            self._groups.add(group)
            self._tell()

    def discard(self, group: int) -> None:
        """Forget a group that is gone; its number may be used again soon."""
        with self._lock:
            self._groups.discard(group)
            self._tell()

    def close(self) -> None:
        """Kill the groups that are left, and end."""
        assert self._shell.stdin
        with contextlib.suppress(OSError):
            self._shell.stdin.close()
        self._shell.wait()

    def _tell(self) -> None:
        assert self._shell.stdin
        try:
            self._shell.stdin.write((" ".join(map(str, self._groups)) + "\n").encode())
            self._shell.stdin.flush()
        except OSError:
            log.warning(
                "the process that kills orphans is gone; services may outlive a killed agent"
            )


def owner_mark(state_dir: Path) -> str:
    """Return the mark of the agent with that state directory; there is one such agent at a time."""
    return str(state_dir.resolve())


def kill_orphans(mark: str) -> int:
    """Kill every process that carries the mark; return how many there were."""
    killed: set[int] = set()
    # A child may be born while its parent is killed: look again until nothing is left.
    deadline = time.monotonic() + 5.0
    while (found := list(_marked(mark))) and time.monotonic() < deadline:
        for process in found:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
            killed.add(process.pid)
        time.sleep(0.02)
    return len(killed)


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if (
                process.pid != os.getpid()
                and process.environ().get(MARK) == mark
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                yield process
        except (psutil.Error, OSError):
            continue
