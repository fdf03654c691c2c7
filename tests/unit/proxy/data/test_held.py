"""Held requests keep their demand; without a real store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.data import waiting
from proxy.data.admission import Action, Decision
from proxy.data.exchange import Exchange
from proxy.data.request_buffer import ReadAheadBudget
from proxy.data.snapshot_cache import View
from proxy.data.waiting import HeldRequests
from proxy.http.metrics import Metrics
from qwenctl.config.deployment import Config
from qwenctl.core.phase import Phase
from qwenctl.core.rules import Activity
from qwenctl.core.snapshot import Admission
from tests.unit.proxy.made import ANYBODY, request, snapshot

HOLD = Decision(Action.HOLD, Activity.WAKES, wakes=True)


class Parts:
    """Stands in for `Admit` and `SnapshotCache`; the GPU boots for ever."""

    def __init__(self) -> None:
        self.demands = 0
        self.view = View("main")
        self.view.snapshot = snapshot("booting")

    async def demand(self, _: Exchange, **__: Any) -> Admission:
        self.demands += 1
        return Admission(Phase.BOOTING, 1)


def test_a_held_request_renews_its_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "RENEW_HELD", 0.02)
    config = Config.model_validate({"gpu": {"main": {}}, "proxy": {"hold": 0.5}})
    parts = Parts()
    answers: list[Any] = []

    async def never() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        answers.append(message)

    async def go() -> bool:
        stands_in: Any = parts
        held = HeldRequests(config, stands_in, stands_in, Metrics(), ReadAheadBudget())
        exchange = Exchange(
            request("POST", "/v1/chat/completions"),
            ANYBODY,
            "main",
            config.gpu["main"],
            parts.view,
            {"type": "http"},
            never,
            send,
            stands_in,
        )
        return await held.hold(exchange, HOLD)

    assert asyncio.run(go())
    assert answers[0]["status"] == 503
    assert parts.demands >= 3
