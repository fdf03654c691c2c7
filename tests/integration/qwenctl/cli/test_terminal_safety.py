"""Strangers' text cannot reach the operator's terminal as control characters."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qwenctl.cli.use.status import _gpu_lines, event_words
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Phase
from qwenctl.core.status import full_status
from qwenctl.lib.text import one_line
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store

EVIL = "POST /\x1b[31mred\r\nsecond line\x9b"


def test_reasons_and_actors_are_made_plain(store: Store) -> None:
    store.demand("main", "request:a", 60, reason=EVIL, actor=EVIL)
    store.pin("main", "pin:a", 60, reason=EVIL, actor=EVIL)
    store.release("main", actor=EVIL, reason=EVIL)
    store.block("main", "maintenance:a", 60, reason=EVIL, actor=EVIL)
    snapshot = store.snapshot("main")
    shown = [text for lease in snapshot.blocks for text in (lease.reason, lease.actor)]
    shown += [value for event in store.events("main") for value in event.fields.values()]
    assert any("\\x1b[31mred" in text for text in shown)
    assert all(text.isprintable() for text in shown)


def test_a_node_cannot_steer_the_terminal_by_its_report(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "fine\x1b[2J\x9b"
    lock, _, _ = store.acquire("main", "proxy", 60.0)
    assert lock
    for source, to in pairwise((Phase.OFF, Phase.STARTING, Phase.BOOTING)):
        move = Move(to, "test", Guard.NONE)
        store.transition("main", lock, source, move, drain=0, idle_timeout=1)
    verdict, seq = store.hello(
        Hello(gpu="main", boot_id="boot-0001", version=evil), "nonce-0000000001"
    )
    assert verdict == "ok"
    report = Report.model_validate(
        {
            "gpu": "main",
            "boot_id": "boot-0001",
            "start_seq": seq,
            "state": "failed",
            "error": evil,
            "progress": {"phase": "weights", "text": evil},
            "services": [
                {"name": "webui", "state": "failed", "port": 1, "detail": evil, "error": evil}
            ],
            "resources": {"gpus": [{"index": "0", "name": evil}], "gpu_note": evil},
        }
    )
    assert store.report(report, "nonce-0000000002", heartbeat=5.0)[0] == "ok"
    monkeypatch.setenv("NO_COLOR", "1")
    failure = Failure("service_failed", evil, 1, 0.0, instance_is_bad=False)
    shown = []
    for source, to, why in (
        (Phase.BOOTING, Phase.LOADING, None),
        (Phase.LOADING, Phase.FAILED, failure),
    ):
        move = Move(to, "test", Guard.NONE, failure=why)
        store.transition("main", lock, source, move, drain=0, idle_timeout=1)
        state = full_status(store.snapshot("main"), store.events("main"), GpuConfig())
        shown += list(_gpu_lines(state))
    shown += [event_words(event) for event in store.events("main")]
    assert sum("fine" in line for line in shown) >= 8
    assert [line for line in shown if not line.isprintable()] == []


def test_one_line_is_plain() -> None:
    assert one_line("\x1b[31mred\nmore") == "\\x1b[31mred (more in `qwenctl logs`)"
