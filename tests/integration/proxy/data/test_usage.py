"""Use is written to the store, whatever fails in between."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import redis

from proxy.data import usage
from qwenctl.core.phase import Phase
from tests.integration.proxy.parts import FaultyStore, leaving, parts, soon
from tests.simulation.life import Life
from tests.simulation.puppets import GPU


@pytest.mark.parametrize("error", [RuntimeError("odd"), redis.exceptions.ResponseError("OOM")])
def test_activity_is_written_after_any_error(
    faulty: FaultyStore, life: Life, error: Exception
) -> None:
    life.wake()

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            faulty.faults["touch"] = error
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: not faulty.faults, 5, "the fault")
                await soon(
                    lambda: {"request:bob", "inflight:me"} <= set(life.leases), 5, "the lease"
                )

    asyncio.run(go())


def test_a_lost_lease_of_work_is_soon_there_again(
    faulty: FaultyStore, life: Life, client: redis.Redis
) -> None:
    life.wake()

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: "inflight:me" in life.leases, 5, "the lease")
                for _ in range(2):
                    key = next(key for key in faulty.keys(GPU) if key.endswith(":leases"))
                    assert client.zrem(key, "inflight:me") == 1
                    await soon(lambda: "inflight:me" in life.leases, 2.5, "the lease again")

    asyncio.run(go())


def block(seconds: float) -> None:
    """Stand still with the event loop."""
    time.sleep(seconds)


def test_a_blocked_event_loop_does_not_end_the_work_of_the_node(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever blocks it: the node generates on, and nothing but the loop says so."""
    life.wake()
    monkeypatch.setattr(usage, "RENEW", 0.05)
    phases: list[Phase] = []

    def meanwhile() -> None:
        for _ in range(60):
            life.clock.advance(10.0)
            time.sleep(0.15)
            phases.append(life.step())
            life.node.speak()

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: "inflight:me" in life.leases, 5, "the lease")
                others = threading.Thread(target=meanwhile)
                others.start()
                others.join()  # this is the event loop's thread
            await soon(lambda: "inflight:me" not in life.leases, 5, "the end of the work")
            # What ended is not brought back.
            await asyncio.to_thread(time.sleep, 0.5)
            assert "inflight:me" not in life.leases

    asyncio.run(go())
    assert set(phases) == {Phase.READY}
    assert len(phases) == 60  # ten minutes


def test_what_a_blocked_loop_has_not_read_does_not_count_as_unanswered(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a node whose reports cannot arrive either would be lost under its work."""
    life.wake()
    monkeypatch.setattr(usage, "RENEW", 0.05)
    told: list[float] = []
    touch = faulty.touch

    def noted(*args: Any, unanswered: float = 0.0, **options: Any) -> Phase:
        told.append(unanswered)
        return touch(*args, unanswered=unanswered, **options)

    monkeypatch.setattr(faulty, "touch", noted)

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            silence = made.usage.silence(GPU)
            silence.asked()
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: "inflight:me" in life.leases, 5, "the lease")
                # A node that answers nothing, and a loop that reads.
                await soon(lambda: max(told) > 0.3, 20, "silence")
                silence.heard(time.monotonic())
                told.clear()
                block(5.0)
                during = len(told)
                await soon(lambda: len(told) > during, 20, "a write of the loop itself")
                assert silence.seconds > 5.0
                assert during > 1
                assert max(told[: during + 1]) < 3.0

    asyncio.run(go())


def test_a_loop_that_is_blocked_for_ever_does_not_keep_the_gpu_on(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.wake()
    monkeypatch.setattr(usage, "RENEW", 0.05)
    monkeypatch.setattr(usage, "BLOCKED", 0.5)

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: "inflight:me" in life.leases, 5, "the lease")
                block(1.0)
                life.clock.advance(usage.INFLIGHT_TTL + 1)
                block(0.5)
                assert "inflight:me" not in life.leases

    asyncio.run(go())


def test_an_older_write_does_not_undo_a_younger_one(faulty: FaultyStore, life: Life) -> None:
    """The end of one request is on its way to the store as the next one begins."""
    leaving(life)
    go_on = threading.Event()
    touch = faulty.touch

    def slow(gpu: str, inflight: str, inflight_ttl: float, *args: Any, **options: Any) -> Phase:
        if not inflight_ttl:
            assert go_on.wait(20)
        return touch(gpu, inflight, inflight_ttl, *args, **options)

    async def go() -> list[str]:
        async with parts(faulty) as made:
            tracker = made.usage
            with tracker.use(GPU, "request:ada"):
                await tracker.recorded(GPU)
            faulty.touch = slow  # type: ignore[method-assign]
            ending = asyncio.ensure_future(tracker.recorded(GPU))
            await asyncio.sleep(0.05)
            with tracker.use(GPU, "request:ada"):
                begun = asyncio.ensure_future(tracker.recorded(GPU))
                await asyncio.sleep(0.05)
                go_on.set()
                assert await begun is Phase.DRAINING
                await ending
                return life.leases

    assert "inflight:me" in asyncio.run(go())
