"""Suggest time zones for an unknown name, for error messages."""

from __future__ import annotations

import difflib
import zoneinfo

__all__ = ["alike"]


def alike(name: str) -> list[str]:
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
