"""When a schedule wants a GPU on or off: cron expressions in a time zone, made into windows.

Pure: no I/O and no clock; moments are Unix seconds, `now` is handed in.

Local time that the clocks skip or repeat is treated as Debian's cron does. An expression that names
its hours and minutes (``30 2 * * *``) opens once on each of its days: at the end of the gap where
its time is skipped, the first time round where it comes twice. One whose hour or minute field
begins with ``*`` follows the clock: nothing in the gap, twice in the hour that is repeated.

`cronsim` says which local times match. The step from there to moments is made here, because its own
(2.8) loses firings where clocks go back by half an hour and when it searches backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo

from qwenctl.core.leases import ScheduleKind

_HORIZON = 50 * 366 * 86400.0
"""Seconds that `Schedule.upcoming` looks ahead: there are days that come every 28 years."""


class Cron:
    """A cron expression of five fields, as Debian's cron reads it, and ``L``, ``LW``, ``5L``,
    ``MON#1`` for the last and the nth day."""

    def __init__(self, text: str) -> None:
        """Raises:
        ValueError: not five fields, a bad field, or no day that it ever fires on.
        """
        from cronsim import CronSim, CronSimError

        self.text = " ".join(text.split())
        fields = self.text.split(" ")
        if len(fields) != 5:
            raise ValueError(_FIELDS)
        self.follows_clock = fields[0].startswith("*") or fields[1].startswith("*")
        """It fires at intervals rather than at times of day."""
        self._sim = CronSim
        try:
            next(CronSim(self.text, _ANY_PLACE))
        except CronSimError as error:
            raise ValueError(f"{str(error).lower()}; {_FIELDS}") from None
        except StopIteration:
            raise ValueError("it never fires: no such day comes in 50 years") from None

    def local_times(self, since: datetime) -> Iterator[datetime]:
        """The matching local times (without zone) from ``since`` on."""
        yield from self._sim(self.text, since - timedelta(seconds=1))


_ANY_PLACE = datetime.combine(date(2024, 1, 1), time())
"""Local time, to try an expression from."""

_FIELDS = (
    "it takes five fields: minute, hour, day of month, month, day of week, such as "
    '"0 9 * * mon-fri" for 9:00 from Monday to Friday'
)


@dataclass(frozen=True)
class Window:
    """One time for which a GPU is wanted ready (or off). Unix seconds."""

    opens: float
    """When it is to be ready; this names the window."""
    ends: float
    starts: float
    """When to begin, so that it is ready in time: the lead before `opens`."""


@dataclass(frozen=True)
class Schedule:
    """When a GPU is wanted ready (``prewarm``) or off (``off-hours``)."""

    name: str
    kind: ScheduleKind
    cron: Cron
    zone: tzinfo
    duration: float
    """Seconds from opening to end; elapsed ones, whatever the clocks do meanwhile."""
    lead: float | None = 0.0
    """Seconds to begin before the opening; None: as long as a start usually takes."""
    exceptions: frozenset[date] = frozenset()
    """Local days on which no window opens."""

    @property
    def lease(self) -> str:
        """The name of the lease or block."""
        return f"{self.kind}:{self.name}"

    def openings(self, since: float, until: float) -> list[float]:
        """Every opening in ``since <= t < until``, in order."""
        # Where the clocks are changed nearby, later moments may have earlier local times.
        begin = self._local(since) - self._change_near(since)
        end = self._local(until) + self._change_near(until)
        found: set[float] = set()
        for local in self.cron.local_times(begin):
            if local > end:
                break
            if local.date() not in self.exceptions:
                found.update(moments(local, self.zone, repeat=self.cron.follows_clock))
        return sorted(moment for moment in found if since <= moment < until)

    def window(self, now: float, lead: float) -> Window | None:
        """The window that has started, ``lead`` seconds before its opening, and not ended; of
        several the last to open, which is the last to end."""
        latest, earliest = now + lead, now - self.duration
        until, span = latest, 3600.0
        while until > earliest:
            since = max(earliest, until - span)
            # Both bounds belong to it: due at this very moment; `earliest` itself has just ended.
            last = [t for t in self.openings(since, until + 0.001) if earliest < t <= latest][-1:]
            if last:
                return self._window(last[0], lead)
            until, span = since, span * 2
        return None

    def upcoming(self, now: float, count: int, lead: float) -> list[Window]:
        """The next ``count`` windows to start after now."""
        found: list[float] = []
        since, span = now + lead + 0.001, 3600.0
        while len(found) < count and since < now + _HORIZON:
            found += self.openings(since, since + span)
            since, span = since + span, span * 2
        return [self._window(opening, lead) for opening in found[:count]]

    def _window(self, opens: float, lead: float) -> Window:
        return Window(opens, opens + self.duration, opens - lead)

    def at(self, moment: float) -> datetime:
        """A moment as local time of this schedule."""
        return datetime.fromtimestamp(moment, timezone.utc).astimezone(self.zone)

    def _local(self, moment: float) -> datetime:
        return self.at(moment).replace(tzinfo=None, fold=0)

    def _change_near(self, moment: float) -> timedelta:
        """By how much the clocks change within a day of that moment."""
        before, after = (self.at(moment + day).utcoffset() for day in (-86400.0, 86400.0))
        return abs((after or timedelta()) - (before or timedelta()))

    def words(self, window: Window) -> str:
        """The window in local time: ``09:00-12:00 Europe/Berlin``, with days if it is long."""
        form = "%H:%M" if self.duration <= 86400 else "%a %H:%M"
        return f"{self.at(window.opens):{form}}-{self.at(window.ends):{form}} {self.zone}"


def moments(local: datetime, zone: tzinfo, *, repeat: bool) -> list[float]:
    """The moments of a local time, normally one.

    A time that is skipped has none with ``repeat``, else the end of the gap; one that comes twice
    has two with ``repeat``, else the first.
    """
    first = local.replace(tzinfo=zone, fold=0).timestamp()
    second = local.replace(tzinfo=zone, fold=1).timestamp()
    if first == second:
        return [first]
    if first < second:
        return [first, second] if repeat else [first]
    return [] if repeat else [_end_of_gap(second, first, zone)]


def _end_of_gap(before: float, after: float, zone: tzinfo) -> float:
    """The moment between the two from which on the clocks show the later offset."""

    def offset(moment: float) -> timedelta | None:
        return datetime.fromtimestamp(moment, timezone.utc).astimezone(zone).utcoffset()

    low, high, new = int(before), int(after), offset(after)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if offset(middle) == new else (middle, high)
    return float(high)
