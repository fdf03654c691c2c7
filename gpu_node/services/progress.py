"""Read a service's progress from its output, smooth it, and estimate the time left."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable

from qwenctl.protocol.messages import Progress

MARK = "QWENCTL_PROGRESS "

MAX_CHARS = 400
"""Characters of a line that are searched; a service that works writes long lines."""

# vLLM's processes begin with their name: "(EngineCore_DP0 pid=387) INFO 10-26 21:47:45 […] …".
_SPEAKER = re.compile(r"^\s*\(\w+(?: rank=\d+)? pid=\d+\)\s*")

# tqdm, and vLLM's way of using it: "Loading safetensors checkpoint shards:  50% Completed | 2/4".
_BAR = re.compile(
    r"^\s*(?P<what>.{0,120}?)[:\s]*\b(?P<percent>\d{1,3})(?:\.\d+)?%\s*(?:\||Completed)"
)

# A bar's label; its phase; which part of the phase it covers, in percent.
_BARS = (
    (re.compile(r"captur.*(?:PIECEWISE)", re.IGNORECASE), "warm-up", 0, 50),
    (re.compile(r"captur.*(?:FULL)", re.IGNORECASE), "warm-up", 50, 100),
    (re.compile(r"fetch|download", re.IGNORECASE), "download", 0, 100),
    (re.compile(r"^\S+\.(?:safetensors|gguf|bin|pth?|ckpt)$"), "download", 0, 100),
    (re.compile(r"pull", re.IGNORECASE), "pull", 0, 100),
    (re.compile(r"load|checkpoint|shard|weight", re.IGNORECASE), "weights", 0, 100),
    (re.compile(r"captur|graph|compil|warm", re.IGNORECASE), "warm-up", 0, 100),
)

_ONE_OF_MANY = re.compile(r"-\d+-of-|of-\d{3,}|…|\.\.\.\)")
"""A shard; Hugging Face downloads several at once, so its percent is not that of the whole."""

_NO_BOOT = re.compile(
    r"^\S+\.(?:json|txt|model|jinja|py|md)$|^(?:Processed prompts|Adding requests|Batches)"
)
"""Bars that are no progress of the boot: small files, and work that is done already."""

# Lines of vLLM, Gradio and Uvicorn (Open WebUI) without a bar; their phase, and how much of the
# phase is over then, if that is known.
_LINES: tuple[tuple[str, str, float | None], ...] = (
    (r"Starting to load model", "weights", None),
    (r"Time spent downloading weights", "download", 100),
    (r"Loading weights took [\d.]+ seconds", "weights", 100),
    (r"(?:Model loading|Loading model weights) took [\d.]+ Gi?B", "weights", 100),
    (r"Dynamo bytecode transform time: [\d.]+ s", "warm-up", None),
    (r"Compiling a graph", "warm-up", None),
    (r"Directly load the compiled graph", "warm-up", None),
    (r"torch\.compile (?:takes|took) [\d.]+ s", "warm-up", None),
    (r"Memory profiling takes [\d.]+ seconds", "warm-up", None),
    (r"Available KV cache memory: [\d.]+ GiB", "warm-up", None),
    (r"GPU KV cache size: [\d,]+ tokens", "warm-up", None),
    (r"Capturing (?:the model for )?CUDA ?graphs", "warm-up", None),
    (r"Graph capturing finished in \d+ secs", "warm-up", 100),
    (r"init engine \([^)]*\) took [\d.]+ s", "warm-up", 100),
    (r"Starting vLLM API server", "warm-up", 100),
    (r"Started server process", "warm-up", None),
    (r"Waiting for application startup", "warm-up", None),
    (r"Application startup complete", "warm-up", 100),
    (r"Uvicorn running on", "warm-up", 100),
    (r"Running on local URL", "warm-up", 100),
)
_LINE = re.compile("|".join(f"({pattern})" for pattern, _, _ in _LINES))


def parse_progress(line: str) -> Progress | None:
    """Return the progress in a line of output, or None if the line is about something else.

    Understood are ``QWENCTL_PROGRESS {"phase": "weights", "percent": 40, "text": "…"}``, the
    progress bars of tqdm (Transformers, Hugging Face, Diffusers, vLLM), and those lines of vLLM,
    Gradio and Uvicorn that mark the way to ready.
    """
    if line.startswith(MARK):
        return _ours(line[len(MARK) :])
    if "%" in line and (bar := _BAR.match(_SPEAKER.sub("", line))):
        return _of_bar(bar["what"].strip(), int(bar["percent"]))
    if found := _LINE.search(line, 0, MAX_CHARS):
        assert found.lastindex
        _, phase, percent = _LINES[found.lastindex - 1]
        return Progress(phase=phase, percent=percent, text=found[0])
    return None


def _ours(text: str) -> Progress | None:
    try:
        found = json.loads(text)
        phase, words = str(found.get("phase") or "")[:40], str(found.get("text") or "")[:400]
        return Progress.model_validate({**found, "phase": phase, "text": words})
    except (ValueError, AttributeError, RecursionError):
        return None


def _of_bar(what: str, percent: int) -> Progress | None:
    if percent > 100 or _NO_BOOT.search(what):
        return None
    for label, phase, begin, end in _BARS:
        if label.search(what):
            if phase == "download" and _ONE_OF_MANY.search(what):
                return Progress(phase=phase, text=what)
            return Progress(phase=phase, percent=begin + percent * (end - begin) / 100, text=what)
    return Progress(phase="loading", percent=percent, text=what)


# ---------------------------------------------------------------- steadiness and ETA

_ORDER = {
    phase: rank
    for rank, phase in enumerate(("start", "pull", "create", "download", "weights", "warm-up"))
}

SAMPLE_SECONDS = 0.5
"""The rate is taken over at least this long."""

SMOOTHING_SECONDS = 10.0
"""After this long, the earlier rate counts for a third."""

MEANINGFUL_SECONDS = 2.0
MEANINGFUL_PERCENT = 2.0
"""A phase has to last and to advance this much before its end is estimated."""


class Tracker:
    """Smooths the progress of one start of a service. For any threads.

    Within a phase the percent never falls. A line without a percent does not lead back to an earlier
    phase: programs write out of turn; a progress bar does, because that work is under way. The
    seconds until a phase is over come from its rate.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._now = Progress()
        self._paces: dict[str, _Pace] = {}
        self._log_has_weights = False

    def report(self, progress: Progress) -> Progress:
        """Take progress from the service or its runtime; return the progress after that."""
        with self._lock:
            if progress.phase == "weights" and progress.percent not in (None, 100):
                self._log_has_weights = True
            return self._take(progress)

    def estimate(self, progress: Progress) -> Progress:
        """Take progress seen from outside. It counts only until the service itself reports better."""
        with self._lock:
            if self._log_has_weights or self._now.phase not in ("", "start", "create", "weights"):
                return self._now
            return self._take(progress)

    def _take(self, progress: Progress) -> Progress:
        phase, now = progress.phase, self._clock()
        before = _ORDER.get(self._now.phase)
        rank = _ORDER.get(phase)
        backwards = rank is not None and before is not None and rank < before
        if backwards and progress.percent is None:
            return self._now
        if progress.percent is None:
            pace = self._paces.get(phase)
        else:
            pace = self._paces.setdefault(phase, _Pace(progress.percent, now))
            pace.add(progress.percent, now)
        eta = progress.eta
        if eta is None and pace:
            eta = pace.eta(now)
        percent = pace.percent if pace else None
        self._now = progress.model_copy(update={"percent": percent, "eta": eta})
        return self._now


class _Pace:
    """The percent of one phase, and how fast it grows."""

    def __init__(self, percent: float, now: float) -> None:
        self.percent = percent
        self._first = self._last = (now, percent)
        self._rate: float | None = None  # percent a second

    def add(self, percent: float, now: float) -> None:
        self.percent = max(self.percent, percent)
        since, before = self._last
        seconds = now - since
        if self.percent <= before or seconds < SAMPLE_SECONDS:
            return
        fresh = (self.percent - before) / seconds
        keep = math.exp(-seconds / SMOOTHING_SECONDS)
        self._rate = fresh if self._rate is None else keep * self._rate + (1 - keep) * fresh
        self._last = (now, self.percent)

    def eta(self, now: float) -> float | None:
        """Return whole seconds until 100 %; None while there are too few samples, when that time has
        passed, and at the end."""
        began, first = self._first
        since, last = self._last
        if (
            self._rate is None
            or since - began < MEANINGFUL_SECONDS
            or last - first < MEANINGFUL_PERCENT
            or self.percent >= 100
        ):
            return None
        left = (100 - last) / self._rate - (now - since)
        return float(round(left)) if left > 0.5 else None
