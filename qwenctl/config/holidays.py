"""Read the all-day events of an iCalendar file (RFC 5545), such as a list of holidays.

No library is used: `icalendar` and its dependencies are larger than the rest of the schedules
together, and it does not expand repetitions. A line that is not understood is an error that names
it, never a holiday that is silently missing. A file costs a bounded time, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from qwenctl.errors import ConfigError
from qwenctl.lib.bounded_file import BoundedFile, Unanswered

FIRST_YEAR, LAST_YEAR = 2000, 2100
"""Days before and after are not followed: schedules ask about days to come."""

MAX_BYTES = 2_000_000
"""More than any list of holidays."""

MAX_DAYS = 200_000
"""Days and repetitions of a file: more than any list of holidays, and a fraction of a second."""

READ_SECONDS = 3.0
"""How long to wait for a file's disk."""

_LINE = re.compile(r'([A-Za-z0-9-]+)(;(?:[^":]|"[^"]*")*)?:(.*)')
_DATE = re.compile(r"(\d{4})(\d{2})(\d{2})")
_DAYS = re.compile(r"P(?:(\d{1,6})W|(\d{1,6})D(?:T0+[HMS])*)", re.IGNORECASE)

_Property = tuple[int, str, str, str]
"""Line number, name, parameters, value."""


class CalendarUnanswered(ConfigError):
    """The disk of a calendar file does not answer: nothing is known about the file."""


_files: dict[Path, BoundedFile[frozenset[date]]] = {}


def read_calendar(path: Path) -> frozenset[date]:
    """Read the days of a file, again only once it has changed.

    Raises:
        CalendarUnanswered: its disk does not answer.
        ConfigError: it cannot be read, or something in it is not understood.
    """
    file = _files.setdefault(
        path.absolute(), BoundedFile(path, _parse, most=MAX_BYTES, seconds=READ_SECONDS)
    )
    try:
        return file.read()
    except Unanswered as error:
        raise CalendarUnanswered(f"cannot read {path}: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _parse(content: bytes) -> frozenset[date]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    return all_day_dates(text)


class _Budget:
    """Bounds the work for one file."""

    def __init__(self, left: int) -> None:
        self._left = left

    def spend(self, number: int, count: int = 1) -> None:
        """Raises:
        ValueError: the file has too many days.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError(f"line {number}: more than {MAX_DAYS} days are too many for holidays")


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
    budget = _Budget(MAX_DAYS)
    for event in _events(lines):
        days |= _days(event, budget)
    return frozenset(days)


def _events(lines: list[_Property]) -> Iterator[list[_Property]]:
    """Yield the properties of each event, without those of its alarms.

    Raises:
        ValueError: a component is not closed, or another is.
    """
    open_: list[tuple[int, str]] = []
    event: list[_Property] = []
    for line in lines:
        number, name, _, value = line
        if name == "BEGIN":
            if value == "VEVENT":
                if any(inner == value for _, inner in open_):
                    raise ValueError(f"line {number}: an event in an event; {_NOT_CLOSED}")
                event = []
            open_.append((number, value))
        elif name == "END":
            if not open_ or open_[-1][1] != value:
                raise ValueError(f"line {number}: END:{value[:40]} closes nothing; {_NOT_CLOSED}")
            open_.pop()
            if value == "VEVENT":
                yield event
        elif open_ and open_[-1][1] == "VEVENT":
            event.append(line)
    if open_:
        raise ValueError(f"line {open_[-1][0]}: BEGIN:{open_[-1][1][:40]} is never closed")


_NOT_CLOSED = "is an END missing before it?"

_ONCE = ("DTSTART", "DTEND", "DURATION", "RRULE", "STATUS")
"""Properties that an event has once (RFC 5545, 3.6.1)."""


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


def _days(event: list[_Property], budget: _Budget) -> set[date]:
    found: dict[str, tuple[int, str, str]] = {}
    for number, name, parameters, value in event:
        if name in _ONCE and name in found:
            raise ValueError(f"line {number}: a second {name} in the same event")
        found[name] = (number, parameters, value)
    if found.get("STATUS", (0, "", ""))[2] == "CANCELLED" or not found:
        return set()
    if "DTSTART" not in found:
        raise ValueError(f"line {event[0][0]}: this event has no DTSTART")
    number, parameters, value = found["DTSTART"]
    kinds = parameters.replace('"', "").split(";")
    if "VALUE=DATE" not in kinds and not _DATE.fullmatch(value.strip()):
        if not re.fullmatch(r"\d{8}T\d{6}Z?", value.strip()):
            raise ValueError(f"line {number}: {value[:40]!r} is neither a date nor a time")
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
    days: set[date] = set()
    for start in _starts(found, first, budget):
        if start in skipped or start.year < FIRST_YEAR - 11:  # no event is longer
            continue
        budget.spend(number, length)
        try:
            days.update(start + timedelta(days=offset) for offset in range(length))
        except OverflowError:
            raise ValueError(f"line {number}: the event ends after the year 9999") from None
    return days


def _length(found: dict[str, tuple[int, str, str]], first: date) -> int:
    """Return the days of an event: DTEND is exclusive, the default is 1 (RFC 5545, 3.6.1)."""
    if "DTEND" in found and "DURATION" in found:
        raise ValueError(f"line {found['DURATION'][0]}: DTEND and DURATION in the same event")
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


def _starts(found: dict[str, tuple[int, str, str]], first: date, budget: _Budget) -> Iterator[date]:
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
        raise ValueError(f"line {number}: RRULE:{value[:60]} is not understood; {_WRITE_OUT}")
    step, count = _whole(number, rest, "INTERVAL", 1), _whole(number, rest, "COUNT", 1000)
    until = _date(number, rest["UNTIL"][:8]) if "UNTIL" in rest else date(LAST_YEAR, 12, 31)
    if until < first and "UNTIL" in rest:
        raise ValueError(f"line {number}: UNTIL is before the event's first day")
    begin = first.year
    if "COUNT" not in rest and begin < FIRST_YEAR - 11:  # nobody asks about the years between
        begin += (FIRST_YEAR - 11 - begin) // step * step
    for year in range(begin, min(until.year, LAST_YEAR) + 1, step):
        budget.spend(number)
        try:
            day = first.replace(year=year)
        except ValueError:
            continue  # 29 February, and that year has none
        count -= 1
        if day > until or count < 0:
            return
        yield day


def _whole(number: int, rule: dict[str, str], name: str, default: int) -> int:
    """Return a positive number of a rule."""
    if name not in rule:
        return default
    if not re.fullmatch(r"[0-9]{1,6}", rule[name]) or not int(rule[name]):
        raise ValueError(f"line {number}: {name}={rule[name][:20]} is no positive number")
    return int(rule[name])


def _date(number: int, text: str) -> date:
    match = _DATE.fullmatch(text.strip())
    try:
        if match:
            return date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        pass
    raise ValueError(f"line {number}: {text!r} is no date such as 20261225")


_WRITE_OUT = "write the days out as events of their own"
