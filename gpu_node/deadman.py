"""The dead-man's switch: how long no proxy has been heard, and the way to stop the instance.

It bounds what an unwanted GPU costs when everything that could stop it is gone: the proxy, its
store, or the network between.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["EXIT_POWER_OFF", "CommandStop", "DeadMan", "ExitStop", "SelfStop"]

log = logging.getLogger(__name__)

EXIT_POWER_OFF = 70
"""The agent's exit code after the switch has fired; the local machine goes off on it."""


class DeadMan:
    """Counts the seconds since the last contact, over restarts of the agent within one boot.

    Args:
        file: keeps the time of the last contact.
        boot_id: the count of another boot does not matter.
        limit: seconds.
        clock: seconds of a clock that nobody sets and that all processes share
            (`time.monotonic`).

    A new boot without any contact counts from the first start of its agent.
    """

    def __init__(
        self, file: Path, boot_id: str, limit: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self._file = file
        self._boot_id = boot_id
        self._clock = clock
        now = clock()
        recorded = self._read()
        self._last = now if recorded is None or recorded > now else recorded
        self._written: float | None = recorded
        if recorded is None:
            self._write()

    def contact(self) -> None:
        """A proxy has accepted a message."""
        self._last = self._clock()
        # Not at every heartbeat, to spare the disk: a late record only shortens the countdown.
        if self._written is None or self._last - self._written >= min(5.0, self.limit / 10):
            self._write()

    @property
    def remaining(self) -> float:
        """Seconds until the limit; negative once it has passed."""
        return self._last + self.limit - self._clock()

    def _read(self) -> float | None:
        try:
            record = json.loads(self._file.read_text())
            return float(record["last"]) if record["boot_id"] == self._boot_id else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self) -> None:
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_text(json.dumps({"boot_id": self._boot_id, "last": self._last}))
            fresh.replace(self._file)
        except OSError as error:  # a full disk must not end the node
            log.warning("cannot write %s: %s", self._file, error.strerror)
        self._written = self._last


class SelfStop(Protocol):
    """The way to stop this instance, in one cloud. Called when the services are down."""

    def power_off(self) -> None:
        """Have the instance stopped so that it costs nothing; never raises."""


class ExitStop:
    """Whoever started the agent stops the instance when it exits with `EXIT_POWER_OFF`."""

    def power_off(self) -> None:
        """Do nothing: the exit code says it."""


class CommandStop:
    """A program stops the instance, such as ``aws ec2 stop-instances …`` or ``poweroff``.

    Args:
        command: program and arguments, no shell.
        timeout: seconds it may take.
    """

    def __init__(self, command: Sequence[str], timeout: float = 60.0) -> None:
        self._command = list(command)
        self._timeout = timeout

    def power_off(self) -> None:
        """Run the program; a failure is logged, and tried again when the agent is started again."""
        try:
            done = subprocess.run(
                self._command, timeout=self._timeout, capture_output=True, text=True, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            log.error("the instance could not be stopped: %s", error)
            return
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip()[-500:]
            log.error(
                "the instance could not be stopped: exit code %d: %s", done.returncode, reason
            )
