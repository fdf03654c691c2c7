"""The small model of the drain protocol: no run of it cuts a request, with all its rules in force."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

MODEL = ROOT / "docs" / "decisions" / "model" / "drain_protocol.py"


def explored(*rules: str) -> str:
    done = subprocess.run(
        [sys.executable, str(MODEL), *rules], capture_output=True, text=True, timeout=170
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules", [("3",), ("3", "intr"), ("3", "lie"), ("3", "lost"), ("3", "frozen"), ("3", "vanish")]
)
def test_no_run_cuts_a_request(rules: tuple[str, ...]) -> None:
    assert explored(*rules).startswith("no violation in ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules",
    [
        ("2",),
        ("3", "nolockrule"),
        ("3", "noepoch"),
        ("3", "stale"),
        ("3", "intr", "noask"),
        ("3", "lie", "believed"),
        ("3", "block", "owned"),
        ("3", "lost", "unvouched"),
        ("3", "lost", "olddrain"),
        ("3", "frozen", "doubted"),
        ("3", "vanish", "ghosts"),
        ("3", "trusted"),
    ],
)
def test_without_one_of_its_rules_there_is_such_a_run(rules: tuple[str, ...]) -> None:
    found = explored(*rules)
    assert "violation" in found.lower()
    assert "no violation" not in found
