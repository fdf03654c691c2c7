"""Simultaneous requests of a client share one demand; without a real store."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from proxy.data.admit import Admit, Inbound
from proxy.data.snapshot_cache import View
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Admission
from tests.unit.proxy.made import ANYBODY, request, snapshot


class Store:
    """Holds the first demand back; a `down` came after the requests that began before it."""

    def __init__(self) -> None:
        self.down_at = time.monotonic()
        self.demands = 0
        self.ttl = 0.0
        self.first = threading.Event()

    def demand(self, _: str, __: str, ttl: float, *, began_ago: float, **___: Any) -> Admission:
        self.demands += 1
        self.ttl = ttl
        if self.demands == 1:
            assert self.first.wait(10)
        return Admission(Phase.OFF, 1, released=time.monotonic() - began_ago < self.down_at)


class Usage:
    inflight_lease = "inflight:p"


def inbound(began: float) -> Inbound:
    what = request("POST", "/v1/chat/completions")
    return Inbound(what, ANYBODY, "main", GpuConfig(), View("main"), began=began)


@pytest.mark.parametrize("second_began", [1.0, -1.0])
def test_a_request_that_joins_another_is_asked_for_anew_if_that_is_given_up(
    second_began: float,
) -> None:
    async def go() -> tuple[Store, Admission, Admission]:
        store, usage, none = Store(), Usage(), None
        made: Any = (store, none, usage, none)
        admit = Admit(*made)
        early = asyncio.create_task(admit.demand(inbound(store.down_at - 5.0), wake=True))
        await asyncio.sleep(0)
        joins = asyncio.create_task(admit.demand(inbound(store.down_at + second_began), wake=True))
        await asyncio.sleep(0)
        store.first.set()
        try:
            return store, await early, await joins
        finally:
            await admit.stop()

    store, early, joined = asyncio.run(go())
    assert early.released
    assert joined.released == (second_began < 0)
    assert store.demands == 2


def test_simultaneous_requests_are_one_call() -> None:
    async def go() -> int:
        store = Store()
        made: Any = (store, None, Usage(), None)
        admit = Admit(*made)
        began = store.down_at + 1.0
        tasks = [asyncio.create_task(admit.demand(inbound(began), wake=True)) for _ in range(20)]
        await asyncio.sleep(0)
        store.first.set()
        await asyncio.gather(*tasks)
        await admit.stop()
        return store.demands

    assert asyncio.run(go()) == 1


@pytest.mark.parametrize(
    ("phase", "held", "lasts"),
    [("off", True, 690.0), ("off", False, 600.0), ("ready", True, 600.0)],
    ids=["held for a start", "told to come again", "held by a drain"],
)
def test_a_lease_lasts_for_the_start_that_its_request_waits_for(
    phase: str, held: bool, lasts: float
) -> None:
    async def go() -> float:
        store = Store()
        store.first.set()
        made: Any = (store, None, Usage(), None)
        admit = Admit(*made)
        asks = inbound(store.down_at + 1.0)
        asks.view.snapshot = snapshot(phase)
        await admit.demand(asks, wake=True, held=held)
        await admit.stop()
        return store.ttl

    assert asyncio.run(go()) == lasts
