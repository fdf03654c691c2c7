"""Windows of a schedule: cron expressions in a time zone, as Unix seconds.

Local times that the clocks skip or repeat are treated as in Debian's cron (cron(8)). An expression
that names its hours and minutes (``30 2 * * *``) opens once on each of its days: at the end of the
gap where its time is skipped, at the first occurrence where it comes twice. An expression whose
hour or minute field begins with ``*`` follows the clock: never in the gap, twice in the repeated
hour.

`cronsim` finds the local times. This module makes moments of them, because cronsim 2.8 loses
firings where clocks go back by half an hour, and when it searches backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo

from qwenctl.core.leases import ScheduleKind

_HORIZON = 50 * 366 * 86400.0
"""Seconds that `Schedule.upcoming` looks ahead: some days come every 28 years."""


class Cron:
    """A cron expression of five fields, as Debian's cron reads it (crontab(5)).

    ``L``, ``LW``, ``5L`` and ``MON#1`` stand for the last and the nth day.
    """

    def __init__(self, text: str) -> None:
        """Raises:
        ValueError: not five fields, a bad field, or it never fires.
        """
        from cronsim import CronSim, CronSimError

        self.text = " ".join(text.split())
        fields = self.text.split(" ")
        if len(fields) != 5:
            raise ValueError(_FIELDS)
        self.follows_clock = fields[0].startswith("*") or fields[1].startswith("*")
        """Whether it fires at intervals rather than at times of day."""
        self._sim = CronSim
        try:
            next(CronSim(self.text, _ANY_PLACE))
        except CronSimError as error:
            raise ValueError(f"{str(error).lower()}; {_FIELDS}") from None
        except StopIteration:
            raise ValueError("it never fires: no such day comes in 50 years") from None

    def local_times(self, since: datetime) -> Iterator[datetime]:
        """Yield the matching local times (without zone) from ``since`` on."""
        yield from self._sim(self.text, since - timedelta(seconds=1))


_ANY_PLACE = datetime.combine(date(2024, 1, 1), time())
"""A local time to try an expression from."""

_FIELDS = (
    "it takes five fields: minute, hour, day of month, month, day of week, such as "
    '"0 9 * * mon-fri" for 9:00 from Monday to Friday'
)


@dataclass(frozen=True)
class Window:
    """A period for which a GPU is wanted ready (or off), in Unix seconds."""

    opens: float
    """When it is to be ready; this identifies the window."""
    ends: float
    starts: float
    """When to begin, to be ready in time: the lead before `opens`."""


@dataclass(frozen=True)
class Schedule:
    """When a GPU is wanted ready (``prewarm``) or off (``off-hours``)."""

    name: str
    kind: ScheduleKind
    cron: Cron
    zone: tzinfo
    duration: float
    """Elapsed seconds from opening to end, whatever the clocks do meanwhile."""
    lead: float | None = 0.0
    """Seconds to begin before the opening; None: as long as a start usually takes."""
    exceptions: frozenset[date] = frozenset()
    """Local days on which no window opens."""

    @property
    def lease(self) -> str:
        """The name of the lease or block."""
        return f"{self.kind}:{self.name}"

    def openings(self, since: float, until: float) -> list[float]:
        """Return every opening in ``since <= t < until``, in order."""
        # Where the clocks change nearby, later moments may have earlier local times.
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
        """Return the window that has started, the lead before its opening, and not ended.

        Of several, the last to open, which is the last to end.
        """
        latest, earliest = now + lead, now - self.duration
        until, span = latest, 3600.0
        while until > earliest:
            since = max(earliest, until - span)
            # `latest` is due at this moment; `earliest` has just ended.
            last = [t for t in self.openings(since, until + 0.001) if earliest < t <= latest][-1:]
            if last:
                return self._window(last[0], lead)
            until, span = since, span * 2
        return None

    def upcoming(self, now: float, count: int, lead: float) -> list[Window]:
        """Return the next ``count`` windows to start after now."""
        found: list[float] = []
        since, span = now + lead + 0.001, 3600.0
        while len(found) < count and since < now + _HORIZON:
            found += self.openings(since, since + span)
            since, span = since + span, span * 2
        return [self._window(opening, lead) for opening in found[:count]]

    def _window(self, opens: float, lead: float) -> Window:
        return Window(opens, opens + self.duration, opens - lead)

    def at(self, moment: float) -> datetime:
        """Return a moment as local time of this schedule."""
        return datetime.fromtimestamp(moment, timezone.utc).astimezone(self.zone)

    def _local(self, moment: float) -> datetime:
        return self.at(moment).replace(tzinfo=None, fold=0)

    def _change_near(self, moment: float) -> timedelta:
        """Return by how much the clocks change within a day of a moment."""
        before, after = (self.at(moment + day).utcoffset() for day in (-86400.0, 86400.0))
        return abs((after or timedelta()) - (before or timedelta()))

    def words(self, window: Window) -> str:
        """Return a window as text: ``09:00-12:00 Europe/Berlin``, with days if it is long."""
        form = "%H:%M" if self.duration <= 86400 else "%a %H:%M"
        return f"{self.at(window.opens):{form}}-{self.at(window.ends):{form}} {self.zone}"


def moments(local: datetime, zone: tzinfo, *, repeat: bool) -> list[float]:
    """Return the moments of a local time, normally one.

    With ``repeat`` a skipped time has none and a repeated time two; without it a skipped time has
    the end of the gap and a repeated time the first of the two.
    """
    first = local.replace(tzinfo=zone, fold=0).timestamp()
    second = local.replace(tzinfo=zone, fold=1).timestamp()
    if first == second:
        return [first]
    if first < second:
        return [first, second] if repeat else [first]
    return [] if repeat else [_end_of_gap(second, first, zone)]


def _end_of_gap(before: float, after: float, zone: tzinfo) -> float:
    """Return the moment between the two at which the clocks change."""

    def offset(moment: float) -> timedelta | None:
        return datetime.fromtimestamp(moment, timezone.utc).astimezone(zone).utcoffset()

    low, high, new = int(before), int(after), offset(after)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if offset(middle) == new else (middle, high)
    return float(high)
