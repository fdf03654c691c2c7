"""Keep the agent's last report on disk, for `qwenctl-node status` and for people."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from qwenctl.lib.private_file import read_private, write_note
from qwenctl.lib.version import full_version
from qwenctl.protocol.messages import Report

log = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds between two writes if nothing has changed, to spare the disk."""


class StatusFile:
    """Keeps the file up to date. For one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = time.time()
        self._last: dict[str, Any] = {}
        self._written = float("-inf")

    def begin(self, gpu: str, boot_id: str) -> None:
        """Say that this agent runs, before its first report; never raises."""
        self._keep({"gpu": gpu, "boot_id": boot_id})

    def note(self, report: Report) -> None:
        """Keep a report; never raises."""
        self._keep(
            {
                "gpu": report.gpu,
                "boot_id": report.boot_id,
                "state": report.state,
                "error": report.error,
                "active": report.active,
                "services": [service.model_dump() for service in report.services],
            }
        )

    def _keep(self, said: dict[str, Any]) -> None:
        now = time.monotonic()
        status = {"version": full_version(), "pid": os.getpid(), "started": self._started, **said}
        if status == self._last and now - self._written < INTERVAL:
            return
        self._last, self._written = status, now
        try:
            write_note(self._path, json.dumps({**status, "written": time.time()}))
        except OSError as error:  # a full disk must not end the node
            log.warning("cannot write %s: %s", self._path, error.strerror)


def read_status(path: Path) -> dict[str, Any]:
    """Return the file's content; empty if it cannot be read."""
    try:
        found = json.loads(read_private(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
