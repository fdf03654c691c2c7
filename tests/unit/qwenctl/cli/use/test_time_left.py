"""No command shows a time of nothing that is left, whatever has run out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qwenctl.cli.use.follow import _footer
from qwenctl.cli.use.status import _status_text
from qwenctl.config.gpu import GpuConfig
from qwenctl.core import failures
from qwenctl.core.explain import explain
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import full_status, page_status
from tests.unit.qwenctl.core.test_status import LOADING

NOW = 10_000.0
GPU = GpuConfig(boot_estimate=4.0)
OVER = re.compile(r"\b0\.0 s\b(?! ago)|-\d")


def snapshot(phase: str, left: float, **more: Any) -> Snapshot:
    leases = (Lease("request:anna", NOW + left, since=NOW - 9, actor="anna"),)
    node = {"boot_id": "boot-0001", "seen_at": str((NOW - 3) * 1000), "version": "0.1.0"}
    state = {"phase": phase, "since": str((NOW - 60) * 1000), "observed": "running"}
    state["observed_at"] = str((NOW - 2) * 1000)
    failure = failures.Failure(failures.TRANSIENT, "x", 2, NOW - 3, instance_is_bad=False)
    if phase == "failed":
        state["failure"] = failure.encode()
    return Snapshot("main", NOW, state, **{"leases": leases, "node": node, **more})


@pytest.mark.parametrize("left", [0.01, -0.4])
@pytest.mark.parametrize("phase", ["loading", "ready", "draining", "failed", "starting", "off"])
def test_what_has_run_out_is_never_told_as_nothing_left(phase: str, left: float) -> None:
    seen = snapshot(phase, left)
    data = full_status(seen, LOADING, GPU)
    texts = [_status_text({"gpus": {"main": data}}), *map(str, explain(seen, LOADING))]
    texts.append(_footer(page_status(seen, LOADING, GPU, may_wake=True), age=9.0))
    for text in texts:
        assert not OVER.search(text), text


@pytest.mark.parametrize("left", [0.01, -0.4])
def test_so_it_is_of_a_block(left: float) -> None:
    block = Lease("maintenance:ada", NOW + left, since=NOW - 9, actor="ada")
    seen = snapshot("off", 9.0, blocks=(block,))
    data = full_status(seen, LOADING, GPU)
    for text in [_status_text({"gpus": {"main": data}}), *map(str, explain(seen, LOADING))]:
        assert not OVER.search(text), text


def test_an_estimate_that_is_over_is_longer_than_usual() -> None:
    seen = snapshot("loading", 60.0)
    data = full_status(seen, [], GPU)
    assert data["eta_seconds"] is not None
    late = {**data, "eta_seconds": 0.0}
    assert ", longer than usual" in _status_text({"gpus": {"main": late}})
    assert _footer(late, age=0.2).endswith("longer than usual")
    soon = {**data, "eta_seconds": 1.5}
    assert ", about 1.5 s left" in _status_text({"gpus": {"main": soon}})
    assert _footer(soon, age=1.0).endswith("any moment now")
