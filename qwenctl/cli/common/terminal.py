"""Write colours, times and warnings to the terminal, without Rich."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

import typer

from qwenctl.cli.common.language import said

_PHASE_COLOURS = {
    "off": "bright_black",
    "starting": "yellow",
    "booting": "yellow",
    "loading": "yellow",
    "ready": "green",
    "draining": "cyan",
    "stopping": "cyan",
    "failed": "red",
}


def coloured(stream: TextIO | None = None) -> bool:
    """Return whether to write colours (https://no-color.org, FORCE_COLOR, TERM=dumb)."""
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def live(stream: TextIO) -> bool:
    """Return whether lines on this stream can be redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(
    text: str,
    colour: str | None = None,
    *,
    bold: bool = False,
    dim: bool = False,
    stream: TextIO | None = None,
) -> str:
    """Return the text in a colour if the stream (default: stdout) shows colours."""
    if not coloured(stream):
        return text
    return typer.style(text, fg=colour, bold=bold or None, dim=dim or None)


def phase_style(phase: str) -> str:
    return _PHASE_COLOURS.get(phase, "white")


def clock(seconds: float, now: float) -> str:
    """Return the local time, or the date if it is more than half a day away."""
    form = "%H:%M:%S" if abs(seconds - now) < 43200 else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(seconds))


def stamp(seconds: float) -> str:
    """Return local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def shorten(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(paint(said(text), "yellow", stream=sys.stderr), file=sys.stderr, flush=True)
