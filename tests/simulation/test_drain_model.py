"""The small models of the drain protocol and of claims: no run cuts work, with all rules in force."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT

MODELS = ROOT / "docs" / "decisions" / "model"


def explored(*rules: str, model: str = "drain_protocol.py") -> str:
    done = subprocess.run(
        [sys.executable, str(MODELS / model), *rules], capture_output=True, text=True, timeout=550
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "rules", [("3",), ("3", "intr"), ("3", "lie"), ("3", "lost"), ("3", "frozen"), ("3", "vanish")]
)
def test_no_run_cuts_a_request(rules: tuple[str, ...]) -> None:
    assert explored(*rules).startswith("no violation in ")


@pytest.mark.slow
@pytest.mark.timeout(600)
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
        ("3", "lost", "oldstop"),
        ("3", "frozen", "doubted"),
        ("3", "vanish", "ghosts"),
        ("3", "trusted"),
    ],
)
def test_without_one_of_its_rules_there_is_such_a_run(rules: tuple[str, ...]) -> None:
    found = explored(*rules)
    assert "violation" in found.lower()
    assert "no violation" not in found


def test_a_claim_keeps_one_deployment_from_stopping_the_work_of_another() -> None:
    assert explored(model="claims.py").startswith("no violation in ")


@pytest.mark.parametrize("rule", ["noclaim", "late"])
def test_without_claims_in_time_it_stops_it(rule: str) -> None:
    assert explored(rule, model="claims.py").startswith("VIOLATION")
