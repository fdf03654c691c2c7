"""Make schedules of their settings, and read their calendar files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, tzinfo
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError

from qwenctl.config.deployment import Config
from qwenctl.config.holidays import read_calendar
from qwenctl.config.schedules import OffHoursConfig, PrewarmConfig
from qwenctl.core.leases import OFF_HOURS, PREWARM
from qwenctl.core.schedule import Cron, Schedule
from qwenctl.errors import ConfigError


def schedules(config: Config, gpu: str) -> tuple[Schedule, ...]:
    """Make the schedules of a GPU from its settings.

    Raises:
        ConfigError: a calendar file cannot be used, or the machine's time zone cannot be told.
    """
    table = config.gpu[gpu]
    return tuple(schedule_of(config, gpu, entry) for entry in (*table.prewarm, *table.off_hours))


def schedule_of(config: Config, gpu: str, entry: OffHoursConfig) -> Schedule:
    """Make one schedule of a GPU; raises as `schedules` does."""
    prewarm = isinstance(entry, PrewarmConfig)
    lead = entry.lead if isinstance(entry, PrewarmConfig) else 0.0
    key = f"gpu.{gpu}.{'prewarm' if prewarm else 'off_hours'}: {entry.name}"
    try:
        exceptions = frozenset[date]().union(
            *(_exception(text, config.source) for text in entry.exceptions)
        )
    except ConfigError as error:
        raise type(error)(f"{key}: exceptions: {error}") from None
    return Schedule(
        entry.name,
        PREWARM if prewarm else OFF_HOURS,
        Cron(entry.cron),
        ZoneInfo(entry.timezone) if entry.timezone else machine_zone(),
        entry.duration,
        None if lead == "auto" else lead,
        exceptions,
    )


def calendar_files(entry: OffHoursConfig) -> list[str]:
    return [text for text in entry.exceptions if text.lower().endswith(".ics")]


def _exception(text: str, source: str) -> frozenset[date]:
    if not text.lower().endswith(".ics"):
        return frozenset((date.fromisoformat(text),))
    path = Path(text).expanduser()
    return read_calendar(Path(source).parent / path if source else path)


def machine_zone(env: Mapping[str, str] = os.environ, root: Path = Path("/etc")) -> tzinfo:
    """Return the machine's time zone: ``$TZ``, ``/etc/localtime``, else UTC (tzset(3)).

    It has a name if ``$TZ``, the link or ``/etc/timezone`` gives it.

    Raises:
        ConfigError: ``$TZ`` or the file cannot be read as a zone.
    """
    named = env.get("TZ", "").removeprefix(":")
    local = Path(named) if named.startswith("/") else root / "localtime"
    try:
        if named and not named.startswith("/"):
            return ZoneInfo(named)
        if not named and not local.exists():
            return ZoneInfo("UTC")
        _, found, name = str(local.resolve()).partition("/zoneinfo/")
        if found:
            return ZoneInfo(name)
        with local.open("rb") as file:  # a copy, which has no name
            zone = ZoneInfo.from_file(file, key="local time")
        return _named_alike(root / "timezone", local) or zone
    except (ZoneInfoNotFoundError, ValueError, OSError):
        what = f"TZ={named}" if named else local
        raise ConfigError(
            f"the time zone of this machine cannot be told from {what}; set `timezone` in the "
            "schedule"
        ) from None


def _named_alike(said: Path, local: Path) -> ZoneInfo | None:
    """Return the zone of ``/etc/timezone``, which may be outdated, if it has the same content."""
    try:
        name = said.read_text(encoding="utf-8").strip()
        zone = ZoneInfo(name)
        for place in TZPATH:
            original = Path(place, name)
            if original.is_file() and original.read_bytes() == local.read_bytes():
                return zone
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    return None
