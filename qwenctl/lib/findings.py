"""Findings of the doctors' checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from qwenctl.lib.redaction import redacted


class Level(str, Enum):
    """The level of a finding."""

    OK = "ok"
    WARN = "warn"  # works, but costs money or surprises
    FAIL = "fail"  # does not work


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``fix`` is one or two sentences; a failure has it."""

    check: str
    level: Level
    found: str
    fix: str = ""
    gpu: str = ""
    """Empty: it is about the whole deployment."""


Check = Callable[[], Iterable[Finding]]
"""Checks one thing and changes nothing; raises `Stop` if later checks would fail likewise."""


class Stop(Exception):
    """End the checks of this GPU with a finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, redacted(found))


def warn(check: str, found: str, fix: str = "") -> Finding:
    return Finding(check, Level.WARN, redacted(found), fix)


def fail(check: str, found: str, fix: str) -> Finding:
    return Finding(check, Level.FAIL, redacted(found), fix)


def refusal(check: str, error: Exception, fix: str = "") -> Finding:
    """Make a finding of a provider's error, whose text has the advice after a semicolon."""
    found, _, advice = str(error).partition("; ")
    codes = f" ({advice.rpartition(' (')[2]}" if advice.endswith(")") and " (" in advice else ""
    if codes:
        advice = advice.removesuffix(codes)
    return fail(check, found + codes, fix or advice or "Try again; then ask the cloud's support.")


def run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks until one of them raises `Stop`."""
    for check in checks:
        try:
            yield from check()
        except Stop as stop:
            yield stop.finding
            return
