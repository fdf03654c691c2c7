"""Show the steps of a wake, and the controller's warnings, on stderr."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from qwenctl.cli.common.context import Target
from qwenctl.cli.common.language import said
from qwenctl.cli.common.terminal import coloured, live, paint, warn
from qwenctl.control.standalone import Progress
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.words import cause_words, overdue_words
from qwenctl.lib.text import countdown, duration, escape_all, eta, raw

STEP_WORDS = {
    "request": "Request",
    "start": "Starting the instance",
    "boot": "Booting",
    "load": "Loading",
    "ready": "Ready",
}


def follow(target: Target, first: Snapshot, *, keep_found: bool = True) -> Progress:
    """Follow the GPU from the state ``first`` on; log our controller's warnings to stderr."""
    _log_to_terminal()
    return Progress(target.config, target.name, target.store, first, keep_found=keep_found)


class _OneLine(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if os.environ.get("QWENCTL_DEBUG"):
            text = logging.Formatter("%(name)s: %(message)s").format(record)
        else:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1]:
                text += f" ({record.exc_info[1]}; QWENCTL_DEBUG=1 shows the traceback)"
        # The command itself prints an error that fails the wake; repeated warnings are printed once.
        same = re.sub(r"request [\w-]+", "request", text)
        if same not in self._said and not getattr(record, "fails_wake", False):
            self._said.add(same)
            warn(f"warning: {text}")


def _log_to_terminal() -> None:
    logger = logging.getLogger("qwenctl")
    if not any(isinstance(handler, _OneLine) for handler in logger.handlers):
        logger.addHandler(_OneLine())
        logger.propagate = False
        logger.setLevel(logging.INFO if os.environ.get("QWENCTL_DEBUG") else logging.WARNING)


class StepLines:
    """Prints the steps of a wake, a line for each change; for logs and pipes."""

    every = 10.0

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __enter__(self) -> StepLines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, page: dict[str, Any], *, known: bool) -> None:
        """Print what has changed; ``known``: the durations are learned, not estimated."""
        for text in _lines(escape_all(page), "usually" if known else "estimated"):
            if text not in self._said:
                self._said.add(text)
                print(said(text), file=sys.stderr, flush=True)


def _lines(page: dict[str, Any], usual_word: str) -> Iterator[str]:
    for step in page["steps"][:-1]:
        word = STEP_WORDS[step["key"]]
        if step["state"] == "done" and step["seconds"] is not None:
            yield f"  {word}: done in {duration(step['seconds'])}"
        elif step["state"] == "active" and step["key"] != "request":
            usual = (
                f", {usual_word} {duration(step['expected'])}"
                if (step["expected"] or 0) >= 0.5
                else ""
            )
            yield f"  {word}{usual}"
    progress = page["progress"]
    if progress and progress["phase"]:
        # Only phases, no percentages, in a log.
        yield f"  … {progress['phase']}"
    if page["problem"]:
        yield f"  {page['problem']}"
    if late := page.get("overdue"):  # told once
        yield f"  nothing heard from its agent; it is told to reach {' or '.join(late['urls'])}"
    failure = page["failure"]
    if failure and Phase(page["phase"]) is Phase.FAILED:
        why = f"{cause_words(failure['code'])}: {failure['message']}"
        yield f"  attempt {failure['attempts']} failed, {why}"


class _StepScreen:
    """Draws the steps of a wake several times a second; for terminals."""

    every = 0.5

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._page: dict[str, Any] | None = None
        self._at = 0.0
        # Without a colour system Rich writes neither bold nor dim.
        system: Any = "auto" if coloured(sys.stderr) else None
        console = Console(file=raw(sys.stderr), color_system=system)
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=8, transient=False
        )

    def __enter__(self) -> _StepScreen:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._page:
            self._live.refresh()
            self._live.__exit__(*exception)

    def show(self, page: dict[str, Any], *, known: bool) -> None:
        first = self._page is None
        self._page, self._at = escape_all(page), time.monotonic()
        self._word = "about" if known else "estimated"
        if first:
            self._live.__enter__()

    def _render(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        page = self._page
        if page is None:
            return Text("")
        age = time.monotonic() - self._at
        grid = Table.grid(padding=(0, 1))
        marks = {"done": Text("✓", "green"), "todo": Text("·", "dim"), "failed": Text("✗", "red")}
        for step in page["steps"]:
            active = step["state"] == "active" and not Phase(page["phase"]).serves
            if not hasattr(self, "_spinner"):
                self._spinner = Spinner("dots", style="yellow")
            seconds = step["seconds"]
            if seconds is not None and active:
                seconds += age
            took = "" if seconds is None else duration(seconds)
            if active and (step["expected"] or 0) >= 0.5:
                took += f" of {self._word} {duration(step['expected'])}"
            elif step["state"] == "todo" and (step["expected"] or 0) >= 0.5:
                took = f"{self._word} {duration(step['expected'])}"
            style = "bold" if active else "dim" if step["state"] == "todo" else ""
            mark = self._spinner if active else marks.get(step["state"], Text(" "))
            grid.add_row(mark, Text(STEP_WORDS[step["key"]], style), Text(took, "dim"))
        grid.add_row("", Text(_footer(page, age), "cyan"), "")
        return grid


def _footer(page: dict[str, Any], age: float) -> str:
    failure, progress = page["failure"], page["progress"]
    if failure and Phase(page["phase"]) is Phase.FAILED:
        again = failure["retry_in_seconds"]
        retry = "" if again is None else f"; next attempt {countdown(again - age)}"
        return f"{cause_words(failure['code'])}: {failure['message']}{retry}"
    parts = []
    if progress:
        percent = "" if progress["percent"] is None else f" {progress['percent']:.0f} %"
        remains = (progress.get("eta") or 0.0) - age
        left = f" ({duration(remains)} left)" if remains >= 1 else ""
        parts.append(f"{progress['phase']}{percent}{left} {progress['text']}".strip())
    if page["problem"]:
        parts.append(page["problem"])
    if late := page.get("overdue"):
        parts.append(overdue_words(late["seconds"] + age, " ".join(late["urls"])))
    if Phase(page["phase"]) is Phase.STOPPING:
        parts.append("it is just being stopped and starts again after that")
    left = page["eta_seconds"]
    if left is not None and not Phase(page["phase"]).serves:
        parts.append(eta(left - age) if left - age >= 1 or left == 0 else "any moment now")
    return ", ".join(parts)


def step_display() -> StepLines | _StepScreen:
    """Return the display that suits stderr."""
    return _StepScreen() if live(sys.stderr) else StepLines()


def say(text: str, *, quiet: bool = False) -> None:
    """Print progress to stderr."""
    if not quiet:
        print(paint(said(text), dim=True, stream=sys.stderr), file=sys.stderr, flush=True)
