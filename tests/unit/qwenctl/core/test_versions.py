"""Which side is older, and what refuses an agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenctl.cli.use.status import _status_text
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.explain import explain
from qwenctl.core.refusals import refusal
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import full_status, page_status
from qwenctl.core.versions import skew, trouble

NOW = 10_000.0
MS = 1000
GPU = GpuConfig(agent=True)
OURS = "0.2.0+aaaaaaaa"


def snap(agent: str, *, protocol: str = "3", lasted: float = 30.0, **node: Any) -> Snapshot:
    record = {
        "boot_id": "boot-0001",
        "seen_at": str((NOW - 1) * MS),
        "version": agent,
        "protocol": protocol,
        "proxy_version": OURS,
        "proxy_protocol": "3",
        **node,
    }
    state = {"phase": "loading", "since": str((NOW - lasted) * MS), "observed": "running"}
    state["observed_at"] = str((NOW - 2) * MS)
    lease = Lease("request:anna", NOW + 600, since=NOW - lasted)
    return Snapshot("main", NOW, state, (lease,), (), record)


@pytest.mark.parametrize(
    ("agent", "protocol", "older"),
    [
        ("0.1.0", "1", "agent"),
        ("0.2.0", "2", "agent"),  # the same number, from before builds
        ("0.1.9+bbbbbbbb", "3", "agent"),
        ("0.10.0+bbbbbbbb", "3", "proxy"),
        ("0.2.0+bbbbbbbb", "4", "proxy"),
        ("0.2.0+bbbbbbbb", "3", ""),
    ],
)
def test_which_side_is_older(agent: str, protocol: str, older: str) -> None:
    found = skew(snap(agent, protocol=protocol))
    assert found is not None
    assert found.older == older
    assert agent in str(found)
    assert OURS in str(found)
    assert ("qwenctl serve" in found.upgrade) == (older == "proxy")
    assert ("qwenctl-node install" in found.upgrade) == (older != "proxy")
    same = agent.startswith("0.2.0")
    assert ("--force-reinstall" in found.upgrade) == same


def test_nothing_is_said_of_one_build_and_of_records_of_before() -> None:
    assert skew(snap(OURS)) is None
    assert skew(snap("0.1.0", proxy_version="")) is None
    assert skew(snap("")) is None


def test_an_agent_that_cannot_read_what_to_run_does_not_load_for_ever() -> None:
    """It says hello again and again, and never reports."""
    stuck = snap("0.1.0", protocol="1")
    found = trouble(stuck)
    assert found is not None
    assert found.hinders
    assert trouble(snap("0.1.0", protocol="1", lasted=5.0)) is None  # it may just be starting
    said = "the agent (0.1.0) is older than the proxy (0.2.0+aaaaaaaa), and does not understand"
    assert any(said in str(reason) for reason in explain(stuck, []))
    assert any("qwenctl-node install" in str(reason) for reason in explain(stuck, []))
    text = _status_text({"gpus": {"main": full_status(stuck, [], GPU)}})
    assert said in text
    assert "agent 0.1.0 (the proxy is 0.2.0+aaaaaaaa)" in text
    assert page_status(stuck, [], GPU, may_wake=True)["agent_trouble"] == "older"


def test_an_agent_says_itself_what_it_cannot_read() -> None:
    why = "an answer that this version does not understand (spec.services.0.runtime)"
    found = trouble(snap("0.1.0+cccccccc", lasted=1.0, not_understood=why))
    assert found is not None
    assert found.hinders
    assert why in str(found)


def test_an_agent_that_works_is_only_suspected_once_it_takes_long() -> None:
    assert trouble(snap("0.1.0", state="loading")) is None
    late = trouble(snap("0.1.0", state="loading", lasted=90.0))
    assert late is not None
    assert not late.hinders


REFUSED = {"refused_code": "secret", "refused_peer": "10.0.0.7", "refused_at": str((NOW - 5) * MS)}


def booting(**state: str) -> Snapshot:
    found = {"phase": "booting", "since": str((NOW - 30) * MS), "observed": "running", **state}
    found["observed_at"] = str((NOW - 2) * MS)
    return Snapshot("main", NOW, found, (Lease("request:anna", NOW + 600, since=NOW - 30),))


def test_an_agent_of_another_deployment_is_told() -> None:
    seen = booting(**REFUSED, address="10.0.0.7")
    said = "this instance's agent belongs to another deployment, or its secret differs"
    assert said in _status_text({"gpus": {"main": full_status(seen, [], GPU)}})
    assert any(said in str(reason) for reason in explain(seen, []))
    assert page_status(seen, [], GPU, may_wake=True)["agent_trouble"] == "secret"
    elsewhere = refusal(booting(**REFUSED, address="10.0.0.8"))
    assert "an agent that says it is this GPU's" in str(elsewhere)


def test_a_refusal_is_not_told_for_ever_nor_of_an_agent_that_is_heard() -> None:
    assert refusal(booting(**{**REFUSED, "refused_at": str((NOW - 100) * MS)})) is None
    heard = snap(OURS)
    spoofed = Snapshot("main", NOW, {**heard.state, **REFUSED}, (), (), heard.node)
    assert refusal(spoofed) is None


def test_the_page_has_words_for_each_trouble() -> None:
    for lang in ("en", "zh"):
        table = json.loads(Path(f"proxy/locales/{lang}.json").read_text("utf-8"))
        for code in ("older", "newer", "differs", "secret", "malformed"):
            assert table[f"agent.{code}"]
