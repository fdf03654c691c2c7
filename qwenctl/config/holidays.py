"""Read the all-day events of an iCalendar file (RFC 5545), such as a list of holidays.

No library is used: `icalendar` and its dependencies are larger than the rest of the schedules
together, and it does not expand repetitions. A line that is not understood is an error that names
it, never a holiday that is silently missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_text

LAST_YEAR = 2100
"""Events that repeat every year for ever are followed as far as this."""

MAX_BYTES = 10_000_000
"""More than any list of holidays."""

_LINE = re.compile(r'([A-Za-z0-9-]+)(;(?:[^":]|"[^"]*")*)?:(.*)')
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
_DAYS = re.compile(r"P(?:(\d{1,6})W|(\d{1,6})D(?:T0+[HMS])*)", re.IGNORECASE)

_Property = tuple[int, str, str, str]
"""Line number, name, parameters, value."""


def read_calendar(path: Path) -> frozenset[date]:
    """Read the days of a file.

    Raises:
        ConfigError: it cannot be read, or something in it is not understood.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is too large for a calendar of holidays")
        return all_day_dates(read_text(path, encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def all_day_dates(text: str) -> frozenset[date]:
    """Return the days of all-day events; timed and cancelled events do not count.

    Raises:
        ValueError: no calendar, or a line that is not understood.
    """
    lines = list(_properties(text))
    if not lines or lines[0][1:] != ("BEGIN", "", "VCALENDAR"):
        raise ValueError("it is no iCalendar file: it does not begin with BEGIN:VCALENDAR")
    if lines[-1][1:] != ("END", "", "VCALENDAR"):
        raise ValueError("it is cut off: it does not end with END:VCALENDAR")
    days: set[date] = set()
    event: list[_Property] | None = None
    inner = 0  # components within an event, such as alarms, have a DURATION, too
    for line in lines:
        _, name, _, value = line
        if (name, value) == ("BEGIN", "VEVENT"):
            event = []
        elif event is None:
            continue
        elif (name, value) == ("END", "VEVENT"):
            days |= _days(event)
            event = None
        elif name in ("BEGIN", "END"):
            inner += 1 if name == "BEGIN" else -1
        elif not inner:
            event.append(line)
    return frozenset(days)


def _properties(text: str) -> Iterator[_Property]:
    """Parse the lines; folded lines are joined (RFC 5545, 3.1)."""
    joined: list[tuple[int, str]] = []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if line[:1] in (" ", "\t") and joined:
            joined[-1] = (joined[-1][0], joined[-1][1] + line[1:])
        elif line.strip():
            joined.append((number, line))
    for number, line in joined:
        match = _LINE.fullmatch(line.rstrip())
        if match is None:
            raise ValueError(f"line {number} is no iCalendar line: {line[:60]!r}")
        name, parameters, value = match.groups()
        plain = value.upper() if name.upper() in ("BEGIN", "END", "STATUS", "RRULE") else value
        yield number, name.upper(), (parameters or "").upper(), plain


def _days(event: list[_Property]) -> set[date]:
    found = {name: (number, parameters, value) for number, name, parameters, value in event}
    if "DTSTART" not in found or found.get("STATUS", (0, "", ""))[2] == "CANCELLED":
        return set()
    number, parameters, value = found["DTSTART"]
    if "VALUE=DATE" not in parameters.split(";") and not _DATE.fullmatch(value):
        return set()  # it has a time of day
    first = _date(number, value)
    for name in ("RDATE", "RECURRENCE-ID"):
        if name in found:
            raise ValueError(f"line {found[name][0]}: {name} is not understood; {_WRITE_OUT}")
    skipped = {
        _date(number, part)
        for number, name, _, value in event
        if name == "EXDATE"
        for part in value.split(",")
    }
    length = _length(found, first)
    try:
        return {
            start + timedelta(days=offset)
            for start in _starts(found, first)
            if start not in skipped
            for offset in range(length)
        }
    except OverflowError:
        raise ValueError(f"line {number}: the event ends after the year 9999") from None


def _length(found: dict[str, tuple[int, str, str]], first: date) -> int:
    """Return the days of an event: DTEND is exclusive, the default is 1 (RFC 5545, 3.6.1)."""
    if "DTEND" in found:
        number, _, value = found["DTEND"]
        days = (_date(number, value) - first).days
    elif "DURATION" in found:
        number, _, value = found["DURATION"]
        match = _DAYS.fullmatch(value)
        if match is None:
            raise ValueError(f"line {number}: {value!r} is no number of days or weeks")
        days = int(match[1]) * 7 if match[1] else int(match[2])
    else:
        return 1
    if not 0 <= days <= 3660:
        raise ValueError(f"line {number}: an all-day event of {days} days")
    return max(1, days)


def _starts(found: dict[str, tuple[int, str, str]], first: date) -> Iterator[date]:
    """Return the first day of each repetition; only FREQ=YEARLY is understood."""
    if "RRULE" not in found:
        yield first
        return
    number, _, value = found["RRULE"]
    rule = dict(part.partition("=")[::2] for part in value.split(";") if part)
    # Some programs repeat the month and day of the start.
    same = {"BYMONTH": str(first.month), "BYMONTHDAY": str(first.day), "WKST": rule.get("WKST")}
    rest = {key: said for key, said in rule.items() if key not in same or said != same[key]}
    if rest.pop("FREQ", "") != "YEARLY" or rest.keys() - {"INTERVAL", "COUNT", "UNTIL"}:
        raise ValueError(f"line {number}: RRULE:{value} is not understood; {_WRITE_OUT}")
    try:
        step, count = int(rest.get("INTERVAL", "1")), int(rest.get("COUNT", "1000"))
    except ValueError:
        raise ValueError(f"line {number}: RRULE:{value} is not understood") from None
    until = _date(number, rest["UNTIL"][:8]) if "UNTIL" in rest else date(LAST_YEAR, 12, 31)
    for year in range(first.year, min(until.year, LAST_YEAR) + 1, max(1, step)):
        try:
            day = first.replace(year=year)
        except ValueError:
            continue  # 29 February, and that year has none
        count -= 1
        if day > until or count < 0:
            return
        yield day


def _date(number: int, text: str) -> date:
    match = _DATE.fullmatch(text.strip())
    try:
        if match:
            return date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        pass
    raise ValueError(f"line {number}: {text!r} is no date such as 20261225")


_WRITE_OUT = "write the days out as events of their own"
