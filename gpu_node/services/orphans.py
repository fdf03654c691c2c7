"""Nothing outlives the agent, however the agent ends.

Two nets. While the agent lives, a tiny shell process (1 MB) holds the other end of a pipe; when the
agent is killed the pipe breaks and the shell kills the process groups it was last told. And every
service carries a mark in its environment, so that whatever slipped out of its group, or lost its
guard too, is found and killed at the agent's next start. A process id may be used again by somebody
else; the mark may not.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["MARK", "Guard", "kill_marked", "mark_of"]

log = logging.getLogger(__name__)

MARK = "QWENCTL_NODE_OWNER"
"""The environment variable of every service: which agent it belongs to."""

_SCRIPT = """
trap '' HUP INT TERM
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""


class Guard:
    """Kills the process groups in its care when this process is gone."""

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
        """Take a process group into care."""
        with self._lock:
            self._groups.add(group)
            self._tell()

    def discard(self, group: int) -> None:
        """The group is gone; its number may soon be somebody else's."""
        with self._lock:
            self._groups.discard(group)
            self._tell()

    def close(self) -> None:
        """End the guard; what it still guards is killed."""
        assert self._shell.stdin
        try:
            self._shell.stdin.close()
        except OSError:
            pass
        self._shell.wait()

    def _tell(self) -> None:
        assert self._shell.stdin
        try:
            self._shell.stdin.write((" ".join(map(str, self._groups)) + "\n").encode())
            self._shell.stdin.flush()
        except OSError:
            log.warning("the guard process is gone; services may outlive a killed agent")


def mark_of(state_dir: Path) -> str:
    """The mark of the agent with that state directory; there is only one such agent at a time."""
    return str(state_dir.resolve())


def kill_marked(mark: str) -> int:
    """Kill every process that carries the mark; how many there were."""
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
