"""A GPU with a schedule each morning, for the tests of what holds leases by rule."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from qwenctl.config.deployment import Config
from qwenctl.store.store import Store

GPU = "main"
BERLIN = ZoneInfo("Europe/Berlin")
NINE = datetime(2026, 11, 23, 9, tzinfo=BERLIN).timestamp()
"""A Monday."""
HOUR, DAY = 3600.0, 86400.0

MORNING = {"name": "morning", "cron": "0 9 * * *", "timezone": "Europe/Berlin", "duration": "3h"}


def config(*prewarm: dict[str, Any], off_hours: tuple[dict[str, Any], ...] = ()) -> Config:
    table = {"prewarm": prewarm, "off_hours": off_hours, "boot_estimate": 90}
    return Config.model_validate({"gpu": {GPU: table}})


def written(store: Store) -> list[str]:
    """The leases and blocks of the history, in order."""
    return [e.fields["name"] for e in store.events(GPU) if e.kind in ("lease", "block")]
