"""What a service's output says about how far it is."""

from __future__ import annotations

import json
import re

from pydantic import ValidationError

from qwenctl.wire import Progress

__all__ = ["parse_progress"]

MARK = "QWENCTL_PROGRESS "

# tqdm, and vLLM's way of using it: "Loading safetensors checkpoint shards:  50% Completed | 2/4".
_BAR = re.compile(
    r"^\s*(?P<what>.{0,120}?)[:\s]*\b(?P<percent>\d{1,3})(?:\.\d+)?%\s*(?:\||Completed)"
)

_PHASES = (
    (re.compile(r"fetch|download|pull", re.IGNORECASE), "pull"),
    (re.compile(r"load|checkpoint|shard|weight", re.IGNORECASE), "weights"),
    (re.compile(r"captur|graph|compil|warm", re.IGNORECASE), "warm-up"),
)


def parse_progress(line: str) -> Progress | None:
    """The progress that a line of output tells, or None if it is about something else.

    Understood are ``QWENCTL_PROGRESS {"phase": "weights", "percent": 40, "text": "…"}`` and the
    progress bars of tqdm.
    """
    if line.startswith(MARK):
        try:
            told = json.loads(line[len(MARK) :])
            if not isinstance(told, dict):
                return None
            return Progress.model_validate(
                {
                    **told,
                    "phase": str(told.get("phase") or "")[:40],
                    "text": str(told.get("text") or "")[:400],
                }
            )
        except (ValueError, ValidationError):
            return None
    if "%" not in line or not (bar := _BAR.match(line)):
        return None
    percent = int(bar["percent"])
    if percent > 100:
        return None
    what = bar["what"].strip()
    phase = next((name for pattern, name in _PHASES if pattern.search(what)), "loading")
    return Progress(phase=phase, percent=percent, text=what)
