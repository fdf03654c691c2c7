"""`qwenctl doctor`: print the findings."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwenctl.admin.doctor import examine
from qwenctl.cli.common.context import load, print_json
from qwenctl.cli.common.terminal import coloured, live
from qwenctl.errors import ExitCode
from qwenctl.lib.findings import Finding, Level
from qwenctl.lib.text import escape_control, raw

_LEVELS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}

PIPE_WIDTH = 200
"""Columns of a table without terminal."""


def doctor(gpu: str | None, json: bool, config: str | None) -> None:
    """Do `qwenctl doctor`."""
    loaded = load(config)
    if not loaded.gpu:
        from qwenctl.control.left_on import check_any

        check_any(loaded)
    names = [loaded.gpu_name(gpu)] if gpu else list(loaded.gpu)
    findings = []
    for finding in examine(loaded, names):
        findings.append(finding)
        _progress(f"{finding.gpu or 'deployment'}: {finding.check}")
    _progress("")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    if json:
        checks = [{**asdict(one), "level": one.level.value} for one in findings]
        print_json({"ok": not failed, "checks": checks})
    else:
        _print_table(findings)
        warned = sum(finding.level is Level.WARN for finding in findings)
        print(_summary(failed, warned))
    if failed:
        raise typer.Exit(ExitCode.ERROR)


def _progress(text: str) -> None:
    """Show a line that the next replaces: some checks wait for a network."""
    if live(sys.stderr):
        print(f"\r\x1b[K{escape_control(text)}", end="", file=raw(sys.stderr), flush=True)


def _print_table(findings: Iterable[Finding]) -> None:
    console = Console(
        no_color=not coloured(),
        force_terminal=coloured() or None,
        highlight=False,
        width=None if sys.stdout.isatty() else PIPE_WIDTH,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("GPU", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found")
    for finding in findings:
        word, colour = _LEVELS[finding.level.value]
        found = Text(escape_control(finding.found, " "))
        if finding.fix:
            found.append(f"\n→ {escape_control(finding.fix, ' ')}", style="bold")
        table.add_row(
            Text(word, style=colour), Text(escape_control(finding.gpu)), Text(finding.check), found
        )
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _summary(failed: int, warned: int) -> str:
    warnings = f"{warned} warning{'s' if warned != 1 else ''}"
    if failed:
        return f"\n{failed} of these would keep a GPU from working, {warnings}."
    return f"\nNothing here fails; {warnings}." if warned else "\nAll is well."
