"""Watch for the notice with which a cloud takes a spot instance back.

EC2 gives it two minutes ahead, Alibaba Cloud five. Until then, and on instances that are not spot,
the metadata service answers 404.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from gpu_node.machine.metadata import CloudName, Metadata, NoMetadata, Value
from qwenctl.lib.private_file import read_private, write_note

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two looks; EC2 recommends this."""

TIMEOUT = 2.0
"""Seconds that the metadata service, which is on the same host, may take."""

OVER = 30.0
"""Seconds after which a notice is not about this boot: it is seen within `INTERVAL`, and minutes
ahead of its time."""

_PATHS: dict[CloudName, str] = {
    "aliyun": "instance/spot/termination-time",
    "aws": "spot/instance-action",
}


@dataclass(frozen=True)
class Notice:
    """The cloud takes this instance back."""

    action: str
    """What it does then: ``stop``, ``terminate`` or ``hibernate``; ``reclaim``: it does not say."""
    at: float
    """Its time, in seconds on this machine's monotonic clock."""


class InterruptionWatch:
    """Polls the metadata service from a thread of its own.

    Args:
        cloud: the cloud of this instance.
        tell: called from the thread with each new notice.
        url: the metadata service; default: the cloud's own.
        interval: seconds between two looks.
        boot_id: this boot of the instance.
        told_file: keeps the last notice and its boot. An instance that was stopped because of a
            notice may run again before the time in it: the same notice would stop it once more.
    """

    def __init__(
        self,
        cloud: CloudName,
        tell: Callable[[Notice], None],
        *,
        url: str = "",
        interval: float = INTERVAL,
        boot_id: str = "",
        told_file: Path | None = None,
    ) -> None:
        self._cloud = cloud
        self._metadata = Metadata(cloud, url, timeout=TIMEOUT)
        self._tell = tell
        self._interval = interval
        self._boot_id = boot_id
        self._told_file = told_file
        self._last: str | None = None
        self._said: set[str] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interruption", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; does not wait for a look under way."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except NoMetadata as error:
                self._complain(str(error))
            except Exception as error:  # whatever it is: notices are a help, not a condition
                self._complain(f"{type(error).__name__}: {error}")
            self._stopped.wait(self._interval)

    def _look(self) -> None:
        value = self._metadata.get(_PATHS[self._cloud])
        if value is None or value.text == self._last:
            return
        notice = _read(self._cloud, value)
        self._last = value.text
        if notice.at < time.monotonic() - OVER:
            log.info("a spot interruption notice whose time is over is ignored")
        elif self._told_in_earlier_boot(value.text.strip()):
            log.info("a spot interruption notice that was told in an earlier boot is ignored")
        else:
            self._tell(notice)

    def _told_in_earlier_boot(self, text: str) -> bool:
        """Whether the notice was seen in an earlier boot; if not, keep it for later boots."""
        if self._told_file is None:
            return False
        now = {"boot_id": self._boot_id, "notice": text}
        try:
            before = json.loads(read_private(self._told_file))
            if before["notice"] == text:
                return bool(before["boot_id"] != self._boot_id)
        except (OSError, ValueError, TypeError, KeyError):
            pass  # none yet, or nothing of use
        with contextlib.suppress(OSError):  # a full disk must not hold a notice back
            write_note(self._told_file, json.dumps(now))
        return False

    def _complain(self, reason: str) -> None:
        """Log each kind of trouble once, not each 5 s."""
        if reason not in self._said:
            self._said.add(reason)
            log.warning("cannot look for spot interruption notices: metadata service: %s", reason)


def _read(cloud: CloudName, value: Value) -> Notice:
    """Parse a notice.

    Raises:
        NoMetadata: the value is not a notice.
    """
    try:
        if cloud == "aws":
            found = json.loads(value.text)
            action, when = str(found["action"]), str(found["time"])
        else:
            action, when = "reclaim", value.text.strip()
        moment = datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except (ValueError, TypeError, KeyError):
        raise NoMetadata("a notice that cannot be read") from None
    # By the service's clock: this machine's may be hours off while the system boots.
    return Notice(action[:40], time.monotonic() + moment.timestamp() - value.now)
