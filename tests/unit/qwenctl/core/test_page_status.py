"""What a waiting page may promise: its ETA, its percent, and what follows a block."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from qwenctl.core.explain import explain
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.status import page_status
from qwenctl.protocol.messages import Progress, Report
from tests.unit.qwenctl.core.test_status import GPU, LOADING, NOW, lease, snap


def loading(error: str = "", **progress: Any) -> dict[str, Any]:
    report = Report(
        gpu="main", boot_id="b" * 8, start_seq=1, state="loading", progress=Progress(**progress)
    )
    node = {"report": report.model_dump_json(), "version": "1", "error": error}
    snapshot = replace(snap("loading", leases=(lease(),)), node=node)
    return page_status(snapshot, LOADING, GPU, may_wake=True)


def test_the_eta_is_no_shorter_than_the_nodes_own() -> None:
    learned = loading()["eta_seconds"]
    assert 0 < learned < 40
    assert loading(phase="download", percent=10.0, eta=500.0)["eta_seconds"] == 500.0
    assert loading(phase="download", percent=99.0, eta=0.1)["eta_seconds"] == learned


def test_a_service_that_does_not_start_has_no_eta() -> None:
    page = loading("webui: exit status 1, restarted 3 times", phase="start")
    assert page["mode"] == {"name": "troubled", "waking": True, "idle": False}
    assert page["eta_seconds"] is None


@pytest.mark.parametrize(
    ("percent", "said", "shown"),
    [
        (40.0, "Loading safetensors: 40% of 8", "Loading safetensors: of 8"),
        (40.0, "weights (40.5 %)", "weights"),
        (40.0, "shard 4 of 10", "shard 4 of 10"),
        (None, "40% of the layers", "40% of the layers"),
    ],
)
def test_a_percent_is_shown_once(percent: float | None, said: str, shown: str) -> None:
    assert loading(phase="weights", percent=percent, text=said)["progress"]["text"] == shown


def test_why_says_what_follows_a_block() -> None:
    block = Lease("maintenance:bob", NOW + 3600, "driver", "bob", NOW - 60)

    def ends(*leases: Lease) -> str:
        return str(explain(snap("off", blocks=(block,), leases=leases), [])[-1])

    assert ends(lease("pin:anna", 7200.0)) == (
        "it stays off for 1 h, while blocked; then it starts again for anna (qwenctl up)"
    )
    assert ends(lease("pin:anna", 60.0)) == ends() == "it stays off for 1 h, while blocked"


def blocked(block_left: float, *leases: Lease) -> str | None:
    block = Lease("maintenance:bob", NOW + block_left, "driver", "bob", NOW - 60)
    snapshot: Snapshot = snap("off", blocks=(block,), leases=leases)
    return page_status(snapshot, [], GPU, may_wake=True).get("after_block")


def test_what_follows_a_block() -> None:
    standing = lease("pin:anna", 7200.0)
    assert blocked(3600.0, standing) == "restarts"
    assert blocked(3600.0, lease("pin:anna", 60.0)) == "stays"
    assert blocked(3600.0) == blocked(inf) == "stays"
    assert blocked(3600.0, lease("busy:main", 7200.0)) == "stays"  # work ends before the block
    assert blocked(inf, standing) is None  # it depends on when it is lifted
    assert blocked(inf, lease("pin:anna", inf)) == "restarts"
    assert "after_block" not in page_status(snap("off"), [], GPU, may_wake=True)
