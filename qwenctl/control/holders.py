"""Writes what the schedules want into the store: leases (prewarm) and blocks (off-hours).

Level-triggered: each pass asks which windows are open now and sees to it that their leases are
there, for what is left of them. So a proxy that was down at the opening loses nothing but the time,
and any number of proxies and cron jobs may do the same at once (`Store.schedule` writes a window
once). The time is the store's.
"""

from __future__ import annotations

import logging
import threading

from qwenctl.config.deployment import Config
from qwenctl.config.read_schedules import calendar_files, schedules
from qwenctl.core.schedule import Schedule, Window
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY
from qwenctl.core.wakes import expected, wakes
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.store.store import Store

__all__ = [
    "Scheduler",
    "apply",
    "usual_lead",
]

log = logging.getLogger("qwenctl.control.holders")

LOOK_SECONDS = 30.0
"""The longest time between two passes: a changed calendar file, a slower boot, and a clock that was
set are noticed that late."""


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
        if any(calendar_files(entry) for entry in (*table.prewarm, *table.off_hours)):
            try:
                self._schedules[gpu] = schedules(self._config, gpu)
                self._troubles.pop(gpu, None)
            except ConfigError as error:
                if self._troubles.get(gpu) != str(error):
                    self._troubles[gpu] = str(error)
                    log.warning("%s; going on with what was read before", error)
        return self._schedules[gpu]
