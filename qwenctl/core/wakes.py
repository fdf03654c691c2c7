"""Wakes: click → start call → running → hello → … → ready → first byte.

`wakes` folds events into `Wake` objects; `expected` learns from them how long each step usually
takes. The waiting page's ETA, `qwenctl status` and the metrics use both.

An attempt that fails ends its wake; the retry is another wake. Times are seconds on the store's
clock, durations seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from qwenctl.core.events import Event, EventKind
from qwenctl.core.phase import Phase

STEPS = ("request", "start", "boot", "load")
"""The steps whose durations add up to a wake, in order."""

LEARN_FROM = 20
"""Number of successful wakes that `expected` uses."""

_SHARES = {"request": 0.0, "start": 0.25, "boot": 0.25, "load": 0.5}
"""Shares of the owner's estimate, before there are wakes to learn from. A request needs
milliseconds; of the rest, half is the machine and half what it loads."""


class Mark(str, Enum):
    """A moment of a wake."""

    CLICK = "click"  # the demand that woke it
    CALL = "call"  # the start call was made
    RUNNING = "running"  # the cloud says running
    HELLO = "hello"  # the agent of this boot said hello
    READY = "ready"
    FIRST_BYTE = "first_byte"  # a visitor got the service's first answer


class Outcome(str, Enum):
    """Outcomes of a wake."""

    UNDER_WAY = "under_way"
    READY = "ready"
    FAILED = "failed"
    ABANDONED = "abandoned"  # no longer wanted, or by `down` or `block`


_SPANS = {
    "request": (Mark.CLICK, Mark.CALL),
    "start": (Mark.CALL, Mark.RUNNING),
    "boot": (Mark.RUNNING, Mark.HELLO),
    "load": (Mark.HELLO, Mark.READY),
    "first_byte": (Mark.READY, Mark.FIRST_BYTE),
}


@dataclass
class Wake:
    """An attempt to get a GPU ready."""

    id: str
    """Id of its first event."""
    started_at: float
    actor: str
    """Who asked for it."""
    cause: str
    """The lease's reason; ``unblock``; or the transition's cause if nobody asked."""
    lease: str = ""
    """Name of the lease that asked for it, if any."""
    marks: dict[Mark, float] = field(default_factory=dict)
    progress: list[tuple[str, float]] = field(default_factory=list)
    """Phases of loading with their beginnings: (``pull``, ``weights``, …; time)."""
    outcome: Outcome = Outcome.UNDER_WAY
    code: str = ""
    """The failure code, or the cause of the transition that ended it."""
    ended_at: float | None = None

    @property
    def cold(self) -> bool:
        """Whether it made a start call: no instance found running, no service restart."""
        return Mark.CALL in self.marks

    @property
    def seconds(self) -> float | None:
        """From click to ready."""
        ready = self.marks.get(Mark.READY)
        return None if ready is None else ready - self.started_at

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of each finished step (see `STEPS`, and ``first_byte`` after them)."""
        return {
            step: max(0.0, self.marks[end] - self.marks[begin])
            for step, (begin, end) in _SPANS.items()
            if begin in self.marks and end in self.marks
        }

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each finished phase of loading, in order: ``pull``, ``weights``, …"""
        end = self.marks.get(Mark.READY, self.ended_at)
        times = [time for _, time in self.progress] + ([] if end is None else [end])
        result: dict[str, float] = {}
        for (name, begin), until in zip(self.progress, times[1:]):
            result[name] = result.get(name, 0.0) + max(0.0, until - begin)
        return result

    def began(self, step: str) -> float | None:
        """Return when a step began; None if it has not."""
        return self.marks.get(_SPANS[step][0])

    def mark(self, mark: Mark, time: float) -> None:
        """Set a mark unless it is set."""
        self.marks.setdefault(mark, time)


def wakes(events: Iterable[Event]) -> list[Wake]:
    """Return the wakes in these events, oldest first.

    The events must be in order; the beginning of the history may be missing.
    """
    fold = _Fold()
    for event in events:
        fold.add(event)
    return fold.wakes


class _Fold:
    def __init__(self) -> None:
        self.wakes: list[Wake] = []
        self._phase: Phase | None = None
        self._asked: Event | None = None  # demand that no wake has answered yet

    @property
    def _open(self) -> Wake | None:
        last = self.wakes[-1] if self.wakes else None
        return last if last and last.outcome is Outcome.UNDER_WAY else None

    def add(self, event: Event) -> None:
        wake = self._open
        if event.kind in (EventKind.LEASE, EventKind.UNBLOCK):
            self._demand(event)
        elif event.kind in (EventKind.DOWN, EventKind.BLOCK):
            self._asked = None
        elif event.kind is EventKind.CALL and event.verb == "start" and wake:
            wake.mark(Mark.CALL, event.time)
        elif event.kind is EventKind.NODE and wake:
            name = event.progress
            if name and (not wake.progress or wake.progress[-1][0] != name):
                wake.progress.append((name, event.time))
        elif event.kind is EventKind.FIRST_BYTE and self.wakes:
            if self.wakes[-1].outcome is Outcome.READY:
                self.wakes[-1].mark(Mark.FIRST_BYTE, event.time)
        elif event.kind is EventKind.TRANSITION:
            self._transition(event)

    def _demand(self, event: Event) -> None:
        if self._open or self._phase is Phase.READY:
            return
        before = self._asked
        # An unblock counts only until a lease follows: else a lease from before the block woke.
        if before is None or before.kind is EventKind.UNBLOCK or event.time > before.expiry:
            self._asked = event

    def _transition(self, event: Event) -> None:
        source, to, cause = event.source, event.to, event.cause
        if source is None or to is None:
            return  # of a newer version
        self._phase = to
        wake = self._open
        if to in (Phase.STARTING, Phase.BOOTING, Phase.LOADING):
            if wake is None:
                wake = self._begin(event, cause, source)
            if to is Phase.BOOTING:
                wake.mark(Mark.RUNNING, event.time)
            elif to is Phase.LOADING:
                wake.mark(Mark.HELLO, event.time)
            return
        if to is Phase.DRAINING:
            return  # it may go on from here
        if to is Phase.READY:
            self._asked = None
        if wake is None:
            return
        wake.ended_at = event.time
        if to is Phase.READY:
            wake.mark(Mark.READY, event.time)
            wake.outcome = Outcome.READY
        elif to is Phase.FAILED:
            wake.outcome = Outcome.FAILED
            wake.code = event.failure.code if event.failure else cause
        else:
            wake.outcome, wake.code = Outcome.ABANDONED, cause

    def _begin(self, event: Event, cause: str, source: Phase) -> Wake:
        asked = None if cause == "retry" or source is Phase.READY else self._asked
        self._asked = None
        first = asked or event
        wake = Wake(
            first.id,
            first.time,
            first.actor,
            _why(asked) if asked else cause,
            asked.name if asked and asked.kind is EventKind.LEASE else "",
            {Mark.CLICK: first.time},
        )
        self.wakes.append(wake)
        return wake


def _why(asked: Event) -> str:
    return str(asked.kind) if asked.kind is EventKind.UNBLOCK else asked.cause


def learned(history: Iterable[Wake]) -> bool:
    """Return whether `expected` has wakes to learn from, or only the owner's estimate."""
    return any(wake.outcome is Outcome.READY and wake.cold for wake in history)


def expected(history: Iterable[Wake], estimate: float) -> dict[str, float]:
    """Return the seconds that each of `STEPS` usually takes.

    They are medians of the last successful cold wakes. ``estimate`` is the owner's estimate of a
    whole wake (``boot_estimate``), used until there are wakes to learn from.
    """
    good = [wake for wake in history if wake.outcome is Outcome.READY and wake.cold]
    good = good[-LEARN_FROM:]
    result: dict[str, float] = {}
    for step in STEPS:
        known = [wake.durations[step] for wake in good if step in wake.durations]
        result[step] = median(known) if known else estimate * _SHARES[step]
    return result
