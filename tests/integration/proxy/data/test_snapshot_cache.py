"""Snapshots are taken anew after any error."""

from __future__ import annotations

import asyncio

from qwenctl.core.phase import Phase
from tests.integration.proxy.parts import FaultyStore, parts
from tests.simulation.life import Life
from tests.simulation.puppets import GPU


def test_snapshots_are_taken_after_any_error(faulty: FaultyStore, life: Life) -> None:
    life.wake()

    async def go() -> None:
        async with parts(faulty) as made:
            view = made.snapshots.peek(GPU)
            faulty.faults["snapshot"] = RuntimeError("odd")
            await asyncio.wait_for(made.snapshots.refresh(GPU), 5)
            assert view.lost == "odd"
            await asyncio.wait_for(made.snapshots.refresh(GPU), 5)
            assert (view.lost, view.snapshot.phase) == ("", Phase.READY)

    asyncio.run(go())
