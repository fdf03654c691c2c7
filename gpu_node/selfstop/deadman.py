"""The dead-man's switch: count the time without contact or need, and stop the instance.

It bounds what an unneeded GPU costs when everything that could stop it is gone: the proxy, its
store, or the network between; and when a proxy is there, but its cloud refuses the stop.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qwenctl.lib.private_file import read_private, write_note

log = logging.getLogger(__name__)

EXIT_POWER_OFF = 70
"""The agent's exit code after the switch has fired; the local machine goes off on it."""


class DeadMan:
    """Counts the seconds since the last contact, over restarts of the agent within one boot.

    A contact with a proxy that does not need the instance counts as of when it was needed last.

    Args:
        file: keeps the time of the last contact.
        boot_id: the count of another boot does not matter.
        limit: seconds.
        clock: seconds of a clock that is never set and that all processes share.

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
        recorded = read_contact(file, boot_id, now)
        self._last = now if recorded is None else recorded
        self._unneeded = False
        self._written: float | None = recorded
        if recorded is None:
            self._write()

    def contact(self, unneeded_for: float = 0.0) -> None:
        """Count anew: a proxy has accepted a message.

        If nobody has needed the instance for some seconds, count from then, but from no earlier
        contact's time: a clock that jumps must not stop it.
        """
        self._last = max(self._last, self._clock() - unneeded_for)
        self._unneeded = unneeded_for > 0
        # Not at every heartbeat, to spare the disk: a late record only shortens the countdown.
        if self._written is None or self._last - self._written >= min(5.0, self.limit / 10):
            self._write()

    @property
    def remaining(self) -> float:
        """Seconds until the limit; negative once it has passed."""
        return self._last + self.limit - self._clock()

    @property
    def silence(self) -> str:
        """What has lasted for `limit`, for a person."""
        if self._unneeded:
            return f"nobody has needed this instance for {self.limit:.0f} s, and no proxy stops it"
        return f"no proxy heard for {self.limit:.0f} s"

    def _write(self) -> None:
        record = json.dumps({"boot_id": self._boot_id, "last": self._last})
        try:
            # With an old record the watchdog would take the agent for one that hangs.
            write_note(self._file, record)
        except OSError as error:  # a full disk must not end the node
            log.warning("cannot write %s: %s", self._file, error.strerror)
        self._written = self._last


def read_contact(file: Path, boot_id: str, now: float) -> float | None:
    """Return when a proxy was heard last in this boot, on the monotonic clock; None: unknown."""
    try:
        record = json.loads(read_private(file))
        last = float(record["last"])
        return last if record["boot_id"] == boot_id and 0 <= last <= now else None
    except (OSError, ValueError, ArithmeticError, KeyError, TypeError):
        return None


def power_off(
    command: Sequence[str], *, timeout: float = 60.0, pauses: Sequence[float] = (2.0, 8.0)
) -> None:
    """Run the `power_off_command` until it has worked.

    Without a command the exit code `EXIT_POWER_OFF` says it. Failures are logged. It is not tried
    for ever: an agent that ends is started again, hears a proxy that has come back meanwhile, and
    else tries anew. So does the watchdog each minute, if there is no agent.

    Args:
        command: program and arguments, no shell.
        timeout: seconds that it may take.
        pauses: seconds until each further attempt after a failure.
    """
    for pause in (*pauses, None):
        if not command or _succeeds(command, timeout) or pause is None:
            return
        time.sleep(pause)


def _succeeds(command: Sequence[str], timeout: float) -> bool:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.error("the instance could not be stopped: %s", error)
        return False
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip()[-500:]
        log.error("the instance could not be stopped: exit code %d: %s", done.returncode, reason)
    return done.returncode == 0
