"""Show several GPUs in a line each, and make text fit the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwenctl.cli.common.language import said
from qwenctl.cli.common.terminal import paint, phase_style
from qwenctl.core.phase import Phase
from qwenctl.core.words import NOT_ASKED, cause_words, overdue_words
from qwenctl.lib.text import countdown, duration, eta, one_line, time_left

PIPE_WIDTH = 200
"""Columns of a line without a terminal."""

INDENT = 13
"""Columns of a label, which the following lines of a long text leave free."""


def overview(gpus: Mapping[str, Mapping[str, Any]], width: int = PIPE_WIDTH) -> Iterator[str]:
    """Yield a line for each GPU: name, phase, and what matters most."""
    from rich.cells import cell_len, set_cell_size

    names = max(len(name) for name in gpus)
    told = {name: (_phase(state), *_matter(state)) for name, state in gpus.items()}
    phases = max(cell_len(phase) for phase, _, _ in told.values())
    for name, (phase, text, colour) in told.items():
        room = max(10, width - names - phases - 4)
        text = text if cell_len(text) <= room else set_cell_size(text, room - 1).rstrip() + "…"
        phase_colour = None if phase == "?" else phase_style(gpus[name]["phase"])
        filled = phase + " " * (phases - cell_len(phase))
        shown = f"{paint(f'{name:<{names}}', bold=True)}  {paint(filled, phase_colour)}"
        yield f"{shown}  {paint(text, colour) if colour else text}".rstrip()


def _unknown(state: Mapping[str, Any]) -> bool:
    return state["phase"] == Phase.OFF.value and state["cloud"]["state"] is None


def _phase(state: Mapping[str, Any]) -> str:
    if _unknown(state):
        return "?"
    ago = f" {said(duration(state['now'] - state['since']))}" if state["since"] else ""
    return f"{said(state['phase'])}{ago}"


def _matter(state: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what matters most of a GPU, and its colour: first what a person has to mend."""
    if trouble := _trouble(state):
        return said(trouble), "red"
    text = said(NOT_ASKED) if _unknown(state) else ", ".join(map(said, _usual(state)))
    if state["as_of"] is not None:
        ago = duration(state["now"] - state["as_of"])
        text += f" {said(f'(as of {ago} ago: no proxy runs)')}"
    return text.strip(), None


def _trouble(state: Mapping[str, Any]) -> str:
    """Return what a person has to mend; empty: nothing."""
    failure, blocks = state["failure"], state["blocks"]
    if state.get("removed"):
        return "the settings no longer have it, and its instance may be on"
    if problem := state["stop_problem"]:
        return f"still on: {one_line(problem['text'])}"
    if failure and state["phase"] == Phase.FAILED.value:
        again = failure["retry_in_seconds"]
        retry = "" if again is None else f", {said(f'next attempt {countdown(again)}')}"
        return f"{said(cause_words(failure['code']))}{retry}: {one_line(failure['message'])}"
    if late := state.get("overdue"):
        return overdue_words(late["seconds"], " ".join(late["urls"]))
    if error := state["cloud"]["error"]:
        return f"cloud: {one_line(error)}"
    if blocks:
        left = blocks[0]["seconds_left"]
        until = "until unblocked" if left is None else f"for another {time_left(left)}"
        return f"blocked by {blocks[0]['text']}, {until}"
    return ""


def _usual(state: Mapping[str, Any]) -> Iterator[str]:
    phase, leases = Phase(state["phase"]), state["leases"]
    if phase.waking and state["eta_seconds"] is not None:
        yield eta(state["eta_seconds"])
    if leases:
        yield f"used by {leases[0]['text']}"
        if len(leases) > 1:
            yield f"and {len(leases) - 1} more"
    elif phase is Phase.OFF:
        yield "nobody needs it"
    if state["idle_seconds_left"] is not None and state["verified"]:
        yield f"off {countdown(state['idle_seconds_left'])} unless used"


def fit(lines: Sequence[str], size: tuple[int, int] | None = None) -> list[str]:
    """Return lines cut to the terminal's columns and lines, the first first."""
    from rich.text import Text

    width, height = size or shutil.get_terminal_size()
    room = height - 1  # the cursor stands below
    if len(lines) > room:
        more = len(lines) - room + 1
        lines = [*lines[: room - 1], paint(said(f"… {more} more lines"), dim=True)]
    shown = []
    for line in lines:
        text = Text.from_ansi(line)
        if text.cell_len <= width:
            shown.append(line)
            continue
        text.truncate(width, overflow="ellipsis")
        shown.append(_ansi(text))
    return shown


def wrapped(lines: Sequence[str], width: int) -> list[str]:
    """Return lines broken at words, further ones below the text of the first."""
    from rich.console import Console
    from rich.text import Text

    shown: list[str] = []
    console = Console(width=width)
    for line in lines:
        text = Text.from_ansi(line)
        if text.cell_len <= width:
            shown.append(line)
            continue
        indent = INDENT if line.startswith("  ") and width > 2 * INDENT else 0
        head, rest = text.divide([indent]) if indent else (Text(""), text)
        for number, part in enumerate(rest.wrap(console, width - indent)):
            part.rstrip()
            shown.append((_ansi(head) if number == 0 else " " * indent) + _ansi(part))
    return shown


def _ansi(text: Any) -> str:
    """Return Rich's text with the escape sequences of its styles, if it has any."""
    from io import StringIO

    from rich.console import Console

    if not text.spans:
        return str(text.plain)
    console = Console(
        file=StringIO(), force_terminal=True, color_system="standard", width=10_000, highlight=False
    )
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()
