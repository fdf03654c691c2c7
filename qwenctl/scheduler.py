"""Writes what the schedules want into the store: leases (prewarm) and blocks (off-hours).

Level-triggered: each pass asks which windows are open now and sees to it that their leases are
there, for what is left of them. So a proxy that was down at the opening loses nothing but the time,
and any number of proxies and cron jobs may do the same at once (`Store.schedule` writes a window
once). The time is the store's.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from datetime import date, tzinfo
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, ZoneInfoNotFoundError

from qwenctl.calendar_file import read_calendar
from qwenctl.config import Config, OffHoursConfig, PrewarmConfig
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.schedule import Cron, Schedule, Window
from qwenctl.status import HISTORY
from qwenctl.store import Snapshot, Store
from qwenctl.trace import expected, wakes

__all__ = ["Scheduler", "apply", "machine_zone", "schedules", "usual_lead"]

log = logging.getLogger("qwenctl.scheduler")

LOOK_SECONDS = 30.0
"""The longest time between two passes: a changed calendar file, a slower boot, and a clock that was
set are noticed that late."""


def schedules(config: Config, gpu: str) -> tuple[Schedule, ...]:
    """The schedules of a GPU as configured, with their calendar files read.

    Raises:
        ConfigError: a calendar file cannot be used, or the machine's time zone cannot be told.
    """
    table = config.gpu[gpu]
    return tuple(_schedule(config, gpu, entry) for entry in (*table.prewarm, *table.off_hours))


def _schedule(config: Config, gpu: str, entry: OffHoursConfig) -> Schedule:
    prewarm = isinstance(entry, PrewarmConfig)
    lead = entry.lead if isinstance(entry, PrewarmConfig) else 0.0
    key = f"gpu.{gpu}.{'prewarm' if prewarm else 'off_hours'}: {entry.name}"
    try:
        exceptions = frozenset[date]().union(
            *(_exception(text, config.source) for text in entry.exceptions)
        )
    except ConfigError as error:
        raise ConfigError(f"{key}: exceptions: {error}") from None
    return Schedule(
        entry.name,
        "prewarm" if prewarm else "off-hours",
        Cron(entry.cron),
        ZoneInfo(entry.timezone) if entry.timezone else machine_zone(),
        entry.duration,
        None if lead == "auto" else lead,
        exceptions,
    )


def _files(entry: OffHoursConfig) -> list[str]:
    return [text for text in entry.exceptions if text.lower().endswith(".ics")]


def _exception(text: str, source: str) -> frozenset[date]:
    if not text.lower().endswith(".ics"):
        return frozenset((date.fromisoformat(text),))
    path = Path(text).expanduser()
    return read_calendar(Path(source).parent / path if source else path)


def machine_zone(env: Mapping[str, str] = os.environ, root: Path = Path("/etc")) -> tzinfo:
    """The time zone that this machine is set to: ``$TZ``, ``/etc/localtime``, else UTC.

    Its name is known where ``$TZ``, the link or ``/etc/timezone`` says it.

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
        with local.open("rb") as file:  # a copy: it does not say its name
            zone = ZoneInfo.from_file(file, key="local time")
        return _named_alike(root / "timezone", local) or zone
    except (ZoneInfoNotFoundError, ValueError, OSError):
        what = f"TZ={named}" if named else local
        raise ConfigError(
            f"the time zone of this machine cannot be told from {what}; set `timezone` in the "
            "schedule"
        ) from None


def _named_alike(said: Path, local: Path) -> ZoneInfo | None:
    """The zone that ``/etc/timezone`` names, if that file is the one copied: it may be outdated."""
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


def usual_lead(store: Store, gpu: str, estimate: float) -> float:
    """Seconds that a start usually takes, from the history."""
    return sum(expected(wakes(store.events(gpu, HISTORY)), estimate).values())


def apply(store: Store, gpu: str, schedule: Schedule, window: Window) -> str:
    """Write one open window; see `Store.schedule` for what is returned."""
    return store.schedule(
        gpu,
        schedule.lease,
        window.opens,
        window.ends,
        reason=schedule.words(window),
        actor=f"schedule {schedule.name}",
    )


class Scheduler:
    """Keeps the schedules of all GPUs until told to stop. Beside the controllers, which do the rest."""

    def __init__(self, config: Config, store: Store) -> None:
        """Raises:
        ConfigError: see `schedules`.
        """
        self._config, self._store = config, store
        self._schedules = {gpu: schedules(config, gpu) for gpu in config.gpu}
        self._troubles: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._usual: dict[str, tuple[str, float]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return any(self._schedules.values())

    def run(self, stop: threading.Event) -> None:
        """Pass after pass until ``stop`` is set."""
        delay = 0.0
        while not stop.wait(delay):
            try:
                delay = self.step()
            except StoreUnavailable as error:
                log.warning("%s; no schedule is looked at meanwhile", error)
                delay = 2.0
            except Exception:
                log.exception("a pass of the scheduler failed; trying again")
                delay = 10.0

    def step(self) -> float:
        """One pass; the seconds after which the next one is due. One GPU's fault stays its own.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        delay = LOOK_SECONDS
        for gpu in self._config.gpu:
            try:
                delay = min(delay, self._step(gpu))
                self._failed.pop(gpu, None)
            except StoreUnavailable:
                raise
            except Exception as error:
                if self._failed.get(gpu) != repr(error):
                    self._failed[gpu] = repr(error)
                    log.exception("%s: its schedules cannot be followed; trying again", gpu)
                delay = min(delay, 10.0)
        return delay

    def _step(self, gpu: str) -> float:
        plan = self._fresh(gpu)
        delay = LOOK_SECONDS
        if not plan:
            return delay
        snapshot = self._store.snapshot(gpu)
        now = snapshot.now
        for schedule in plan:
            lead = self._usual_lead(snapshot) if schedule.lead is None else schedule.lead
            window = schedule.window(now, lead)
            if window and apply(self._store, gpu, schedule, window) == "new":
                log.info("%s: %s: %s", gpu, schedule.lease, schedule.words(window))
            # Not `upcoming`: it may be a year until then, and a long way to look.
            soon = schedule.openings(now + lead + 0.001, now + lead + LOOK_SECONDS)
            if soon:
                delay = min(delay, soon[0] - lead - now)
        return max(0.01, delay)

    def _usual_lead(self, snapshot: Snapshot) -> float:
        """Learned anew after each boot."""
        gpu, boot = snapshot.gpu, f"{snapshot.start_seq} {snapshot.state.get('ready_at')}"
        known, lead = self._usual.get(gpu, ("", 0.0))
        if known != boot:
            lead = usual_lead(self._store, gpu, self._config.gpu[gpu].boot_estimate)
            self._usual[gpu] = boot, lead
        return lead

    def _fresh(self, gpu: str) -> tuple[Schedule, ...]:
        """The schedules with their calendar files as they are now, or as they last were."""
        table = self._config.gpu[gpu]
        if any(_files(entry) for entry in (*table.prewarm, *table.off_hours)):
            try:
                self._schedules[gpu] = schedules(self._config, gpu)
                self._troubles.pop(gpu, None)
            except ConfigError as error:
                if self._troubles.get(gpu) != str(error):
                    self._troubles[gpu] = str(error)
                    log.warning("%s; going on with what was read before", error)
        return self._schedules[gpu]
