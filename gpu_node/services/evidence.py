"""Doubt work that a server claims, but that leaves no trace.

A gauge of running requests may stick after an abort until the server works again
(https://github.com/vllm-project/vllm/issues/29928), a queue may count a job whose process is dead,
and a process that hangs may keep a GPU at 100 %. Such a claim would keep the instance on for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_node.machine.nvidia import GpuView
from gpu_node.services.probe import Work, used
from qwenctl.lib.http_probe import ProbeResult
from qwenctl.lib.text import duration
from qwenctl.protocol.messages import GpuFigures

STUCK = 900.0
"""Seconds without a token after which a claim is doubted, if the GPUs do not work either, or cannot
be seen. Longer than the prefill of any prompt, which a busy GPU shows too."""

AT_WORK = 3600.0
"""The same while the GPUs work: a process that hangs in a kernel looks like that."""

CURIOUS = 60.0
"""Seconds without a token until the GPUs are looked at."""

UNSEEN = 86_400.0
"""The same for a claim that nothing can confirm, with no counter and no GPU to be seen idle."""

MUTE = 180.0
"""Seconds without an answer after which an idle service is said to hang. It is only said: a WebUI
whose work nobody counts may be as silent for as long."""

IDLE_PERCENT = 10.0
"""GPU utilisation below which no work is going on."""


@dataclass
class _Still:
    """How long something has not changed."""

    seen: object = None
    since: float = 0.0

    def look(self, seen: object, now: float) -> float:
        if seen != self.seen:
            self.seen, self.since = seen, now
        return now - self.since


class Evidence:
    """Judges once a heartbeat how much of a service's claimed work is believed.

    Args:
        clock: the monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._claim, self._load, self._tokens = _Still(), _Still(), _Still()
        self._worked_at = float("-inf")
        """When the GPUs were last seen at work."""
        self._idle_since: float | None = None
        """Since when they have been seen idle; None while they work or cannot be seen."""
        self.doubt = ""
        """Why a claim does not count, for a person."""

    @property
    def needs_gpus(self) -> bool:
        """Whether figures of the GPUs speak for or against a claim."""
        return self._claim.seen is not None and self._clock() - self._claim.since >= CURIOUS

    def judge(self, work: Work, load: int, view: GpuView, names: Sequence[str]) -> int:
        """Return the number of generations believed.

        Args:
            work: the server's own claim.
            load: the claim by GPU utilisation.
            view: figures of the GPUs; none, unless there is a load or `needs_gpus`.
            names: the GPUs that the service uses.
        """
        now, self.doubt = self._clock(), ""
        figures = [gpu for gpu in used(view, names) if gpu.utilisation_percent is not None]
        self._watch_gpus([] if view.note else figures, now)
        believed = self._by_server(work, now) if work.count else 0
        if not work.count:
            self._claim = _Still()
        return max(believed, self._by_load(work, load, figures, now))

    def _watch_gpus(self, figures: Sequence[GpuFigures], now: float) -> None:
        works = any(_percent(gpu) >= IDLE_PERCENT for gpu in figures)
        if works:
            self._worked_at = now
        if works or not figures:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now

    def _by_server(self, work: Work, now: float) -> int:
        lasted = self._claim.look((work.count, work.progress), now)
        trace = "no token has come"
        if work.progress is not None:
            bound = AT_WORK if now - self._worked_at < STUCK else STUCK
        elif self._idle_since is not None:
            lasted = min(lasted, now - self._idle_since)
            bound, trace = STUCK, "no GPU has worked"
        else:
            bound, trace = UNSEEN, "nothing has changed"
        if lasted < bound:
            return work.count
        runs = "1 request runs" if work.count == 1 else f"{work.count} requests run"
        self.doubt = f"the server says that {runs}, but {trace} for {_whole(lasted)}: not counted"
        return 0

    def _by_load(self, work: Work, load: int, figures: Sequence[GpuFigures], now: float) -> int:
        tokens = self._tokens.look(work.progress, now)
        still = self._load.look(tuple((_percent(f), f.memory_used) for f in figures), now)
        if not load:
            return 0
        if work.known and not work.count and work.progress is not None and tokens >= AT_WORK:
            lasted, trace = tokens, "the server runs nothing and no token has come"
        elif figures and still >= UNSEEN:
            lasted, trace = still, "not one of its figures has changed"
        else:
            return load
        self.doubt = f"the GPU is at work, but {trace} for {_whole(lasted)}: not counted"
        return 0


def _percent(figures: GpuFigures) -> float:
    return figures.utilisation_percent or 0.0


def _whole(seconds: float) -> str:
    """Return whole minutes, so that a report need not change each heartbeat."""
    return duration(seconds // 60 * 60)


class UnansweredProbes:
    """Says how long a service has left its readiness probes without an answer.

    Args:
        clock: the monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def look(self, found: ProbeResult, path: str, active: int) -> str:
        """Note the result of a probe; return what a person should know, or nothing."""
        if found is not ProbeResult.SILENT:
            self._since = None
            return ""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if active or now - self._since < MUTE:
            return ""
        # The end must not be cut off: it says what to do.
        asked = path if len(path) <= 100 else f"{path[:99]}…"
        lasted = _whole(now - self._since)
        return (
            f"it has not answered GET {asked} for {lasted}; if it hangs, `qwenctl restart` ends it"
        )
