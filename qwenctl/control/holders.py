"""Hold leases and blocks by rules: a rule is a `Holder`, and all are listed in `HOLDERS`.

A holder is a pure function of state, history, settings and time. It returns the leases and blocks to
hold now and soon; it starts and stops nothing. In a thread for each GPU a `Keeper` writes, renews and
releases them.

Level-triggered: each pass computes what to hold at that time. So a proxy that was down at the
opening catches up, and any number of proxies and cron jobs may do the same at once (`Store.schedule`
writes a window once). The time is the store's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.holidays import CalendarUnanswered
from qwenctl.config.read_schedules import calendar_files, schedule_of
from qwenctl.core.events import Event
from qwenctl.core.schedule import Schedule, Window
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY
from qwenctl.core.wakes import expected, wakes
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.text import escape_control
from qwenctl.store.store import Store

log = logging.getLogger("qwenctl.control.holders")

LOOK_SECONDS = 30.0
"""Most seconds between two passes, and until a changed calendar file, boot time or clock counts."""

STORE_SECONDS = 2.0
"""When the store is tried again."""

_AS_BEFORE = "going on with what was read before"

RETRY_SECONDS = 10.0
"""Seconds after which a failed holder is retried."""


@dataclass(frozen=True)
class Hold:
    """A lease or block to hold, according to the kind in its name."""

    name: str
    window: Window
    """Hold it from `starts` until `ends`. If `down` or `unblock` ends it, only a later `opens` holds it
    again."""
    reason: str
    actor: str


@dataclass(frozen=True)
class Settings:
    """The settings that holders may read."""

    gpu: GpuConfig
    schedules: tuple[Schedule, ...]
    """With the exceptions of their calendar files."""


History = Callable[[], Sequence[Event]]
"""The latest events, read when called: most passes need none."""


@dataclass(frozen=True)
class Holder:
    """A rule by which leases and blocks are held."""

    name: str
    holds: Callable[[Snapshot, History, Settings, float], Iterable[Hold]]
    kinds: frozenset[str] = frozenset()
    """Kinds that only this holder writes: those that `holds` no longer returns are released, whichever
    process wrote them."""


def usual_lead(events: Sequence[Event], estimate: float) -> float:
    """Return the seconds that a start usually takes, by the history."""
    return sum(expected(wakes(events), estimate).values())


def of_schedule(schedule: Schedule, window: Window) -> Hold:
    """Return the lease or block of one window."""
    return Hold(schedule.lease, window, schedule.words(window), f"schedule {schedule.name}")


def _scheduled(_: Snapshot, history: History, settings: Settings, now: float) -> Iterator[Hold]:
    for schedule in settings.schedules:
        lead = schedule.lead
        if lead is None:
            lead = usual_lead(history(), settings.gpu.boot_estimate)
        if window := schedule.window(now, lead):
            yield of_schedule(schedule, window)
        # Not `upcoming`: it may be a year until then, and a long way to look.
        for opens in schedule.openings(now + lead + 0.001, now + lead + LOOK_SECONDS)[:1]:
            soon = Window(opens, opens + schedule.duration, opens - lead)
            yield of_schedule(schedule, soon)


HOLDERS: list[Holder] = [Holder("schedules", _scheduled)]  # no kinds: cron writes them, too
"""All rules, in no particular order."""


def write(store: Store, gpu: str, hold: Hold) -> str:
    """Write one lease or block; see `Store.schedule` for the result."""
    window = hold.window
    return store.schedule(
        gpu, hold.name, window.opens, window.ends, reason=hold.reason, actor=hold.actor
    )


class Keeper:
    """Applies the holders to one GPU."""

    def __init__(
        self, config: Config, gpu: str, store: Store, holders: Sequence[Holder] = HOLDERS
    ) -> None:
        """Raises:
        ConfigError: see `qwenctl.config.read_schedules.schedules`. A disk that does not answer is
            waited for, without the schedules whose files are on it.
        """
        self._config, self._gpu, self._store, self._holders = config, gpu, store, holders
        self._settings = Settings(config.gpu[gpu], ())
        self._known: dict[str, Schedule] = {}
        self._read: tuple[float, Sequence[Event]] | None = None
        self._troubles: dict[str, str] = {}
        self._read_schedules(first=True)

    def run(self, stop: threading.Event, leads: Callable[[], bool]) -> None:
        """Make passes until ``stop`` is set. ``leads``: whether this process leads now."""
        while not stop.is_set():
            try:
                delay = self.step(release=leads())
            except StoreUnavailable as error:
                log.debug("%s: %s; its schedules are tried again", self._gpu, error)
                delay = STORE_SECONDS
            except Exception:
                log.exception("%s: leases cannot be held by rule; trying again", self._gpu)
                delay = RETRY_SECONDS
            stop.wait(delay)

    def step(self, *, release: bool) -> float:
        """Make a pass; return the seconds until the next.

        If a holder fails, the others are applied, and nothing of it is released.

        Args:
            release: also release what is no longer to be held; only the leader does.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        trouble = self._read_schedules()
        snapshot = self._store.snapshot(self._gpu)
        if release and trouble != snapshot.state.get("schedule_trouble", ""):
            self._store.schedule_trouble(self._gpu, trouble)
        delay = LOOK_SECONDS
        for holder in self._holders:
            try:
                delay = min(delay, self._hold(holder, snapshot, release=release))
                self._troubles.pop(holder.name, None)
            except StoreUnavailable:
                raise
            except Exception as error:
                if self._is_new(holder.name, repr(error)):
                    log.exception(
                        "%s: its %s cannot be followed; trying again", self._gpu, holder.name
                    )
                delay = min(delay, RETRY_SECONDS)
        return max(0.01, delay)

    def _hold(self, holder: Holder, snapshot: Snapshot, *, release: bool) -> float:
        now, delay = snapshot.now, LOOK_SECONDS
        holds = list(holder.holds(snapshot, lambda: self._history(snapshot), self._settings, now))
        for hold in holds:
            wait = hold.window.starts - now
            if wait > 0.001:  # the store counts in milliseconds
                delay = min(delay, wait)
            elif write(self._store, self._gpu, hold) == "new":
                log.info("%s: %s: %s", self._gpu, hold.name, hold.reason)
        if release:
            names = {hold.name for hold in holds if hold.window.starts <= now + 0.001}
            self._release(snapshot, holder, names)
        return delay

    def _release(self, snapshot: Snapshot, holder: Holder, names: set[str]) -> None:
        """Release leases and blocks of the holder's kinds that have other names."""
        for lease in snapshot.leases:
            if lease.kind in holder.kinds and lease.name not in names:
                self._store.release(self._gpu, actor=holder.name, only=lease.name)
        for block in snapshot.blocks:
            if block.kind in holder.kinds and block.name not in names:
                self._store.unblock(self._gpu, block.name, actor=holder.name)

    def _history(self, snapshot: Snapshot) -> Sequence[Event]:
        """Return the events as of the last transition."""
        if self._read is None or self._read[0] != snapshot.since:
            self._read = snapshot.since, self._store.events(self._gpu, HISTORY)
        return self._read[1]

    def _read_schedules(self, *, first: bool = False) -> str:
        """Read the calendar files again; return which schedules cannot be known.

        What was read before goes on to count.

        Raises:
            ConfigError: at the ``first`` time a file cannot be used.
        """
        gpu, troubles = self._settings.gpu, []
        entries = (*gpu.prewarm, *gpu.off_hours)
        again = [entry for entry in entries if first or calendar_files(entry)]
        if not again:
            return ""
        for entry in again:
            try:
                self._known[entry.name] = schedule_of(self._config, self._gpu, entry)
                self._troubles.pop(entry.name, None)
            except ConfigError as error:
                if first and not isinstance(error, CalendarUnanswered):
                    raise
                known = entry.name in self._known
                meanwhile = _AS_BEFORE if known else "it is not followed until then"
                trouble = escape_control(f"{error}; {meanwhile}")
                troubles.append(trouble)
                if self._is_new(entry.name, trouble):
                    log.warning("%s", trouble)
        found = [self._known[entry.name] for entry in entries if entry.name in self._known]
        self._settings = replace(self._settings, schedules=tuple(found))
        return "; ".join(troubles)

    def _is_new(self, what: str, error: str) -> bool:
        """Remember an error; return whether it differs from the last."""
        before, self._troubles[what] = self._troubles.get(what), error
        return error != before
