"""Settings of schedules: ``[[gpu.NAME.prewarm]]`` and ``[[gpu.NAME.off_hours]]``."""

from __future__ import annotations

import datetime
import difflib
import zoneinfo
from typing import Any

from pydantic import Field, field_validator

from qwenctl.lib.settings_types import NAME, Duration, Lead, Table


class OffHoursConfig(Table):
    """Hours in which the GPU is kept off. Running work is finished first. See docs/schedules.md."""

    name: str = Field(pattern=NAME)
    """Name of the schedule in `status`, `why` and `qwenctl prewarm`."""
    cron: str
    """When it begins: minute, hour, day of month, month, day of week, as in a crontab."""
    timezone: str = ""
    """IANA name such as ``Asia/Shanghai``; default: that of the machine that reads this."""
    duration: Duration = Field(gt=0)
    """How long each time."""
    exceptions: tuple[str, ...] = ()
    """Days on which it does not begin: dates such as ``2026-12-25``, and .ics files, whose all-day
    events are meant; a relative path starts at this file."""

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        from qwenctl.core.schedule import Cron

        return Cron(value).text

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            if value:
                zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            meant = " or ".join(_zones_like(value))
            raise ValueError(
                "no such time zone on this machine; "
                + (f"perhaps {meant}; " if meant else "names are like Europe/Berlin, and ")
                + "`pip install tzdata` brings all of them"
            ) from None
        return value

    @field_validator("exceptions", mode="before")
    @classmethod
    def _exceptions(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        for item in value:
            if isinstance(item, datetime.date) and not isinstance(item, datetime.datetime):
                continue  # TOML has a type for dates
            try:
                datetime.date.fromisoformat(item)
            except (TypeError, ValueError):
                if not isinstance(item, str) or not item.lower().endswith(".ics"):
                    raise ValueError(
                        f"{str(item)!r} is neither a date such as 2026-12-25 nor an .ics file"
                    ) from None
        return [str(item) for item in value]


class PrewarmConfig(OffHoursConfig):
    """Hours in which the GPU is kept ready, whether or not somebody uses it. See docs/schedules.md."""

    cron: str
    """When it is to be ready: minute, hour, day of month, month, day of week, as in a crontab."""
    duration: Duration = Field(gt=0)
    """How long it is kept ready each time."""
    exceptions: tuple[str, ...] = ()
    """Days on which it is not: dates such as ``2026-12-25``, and .ics files, whose all-day events
    are meant; a relative path starts at this file."""
    lead: Lead = "auto"
    """How long before that it is started; ``auto``: as long as its last starts took."""


def _zones_like(name: str) -> list[str]:
    """Return at most three zones of this machine with a similar name, or of that city."""
    wanted = name.strip().replace(" ", "_").lower()
    zones = sorted(zoneinfo.available_timezones())
    # Etc/GMT+8 is eight hours behind UTC (tz database, file etcetera).
    known = {zone.lower(): zone for zone in zones if not zone.startswith("Etc/")}
    cities = [lower for lower in known if lower.rpartition("/")[2] == wanted]
    found = [wanted] * (wanted in known) + cities
    if not found:
        found = difflib.get_close_matches(wanted, known, cutoff=0.85)
    if not found and "/" not in wanted:
        by_city = {lower.rpartition("/")[2]: lower for lower in known if "/" in lower}
        near = difflib.get_close_matches(wanted, by_city, cutoff=0.85)
        found = [by_city[city] for city in near]
    return [known[lower] for lower in dict.fromkeys(found)][:3]
