"""Requests that have outlived their instance are ended; all others are left alone."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.data import links
from proxy.http.cut import AnswerCut
from proxy.http.request import Message
from qwenctl.core.failures import Failure
from qwenctl.core.snapshot import Snapshot
from qwenctl.protocol.messages import GpuFigures, Report, Resources
from qwenctl.store.store import Store
from tests.integration.proxy.parts import JSON, FaultyStore, Parts, into, nothing_more, parts, scope
from tests.simulation.life import Life


class Mute:
    """A node that takes requests and says no more than it is told to."""

    def __init__(self) -> None:
        self.says = asyncio.Queue[bytes]()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while not reader.at_eof():
                writer.write(await self.says.get())
                await writer.drain()


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"3\r\nabc\r\n"


@contextlib.asynccontextmanager
async def asked(
    store: Store, now: Snapshot, monkeypatch: pytest.MonkeyPatch, *, mute: Mute
) -> AsyncIterator[tuple[Parts, asyncio.Task[None], list[Message]]]:
    monkeypatch.setattr(links, "SWEEP", 0.05)
    monkeypatch.setattr(links, "MOVING", 0.2)
    async with parts(store, timing={"node_lost": 1}) as made:
        port = made.config.gpu["main"].port
        server = await asyncio.start_server(mute, "127.0.0.1", port)
        made.know(now)
        sent: list[Message] = []
        task = asyncio.ensure_future(made.data(scope("POST", JSON), nothing_more, into(sent)))
        yield made, task, sent
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()


def changed(snapshot: Snapshot, **state: str) -> Snapshot:
    return dataclasses.replace(snapshot, state={**snapshot.state, **state})


LOST = Failure("instance_lost", "gone", 1, 0.0, instance_is_bad=False).encode()
LATER = str(4_000_000_000_000)
"""ms on the store's clock, after any request of this test."""
GONE = {"observed": "stopped", "observed_at": LATER}
BAD = Failure("agent_lost", "silent", 1, 0.0, instance_is_bad=True).encode()


@pytest.mark.parametrize(
    "after",
    [
        {"phase": "off", **GONE},
        {"phase": "starting", **GONE},
        {"phase": "failed", "failure": LOST, **GONE},
        {"began_at": LATER, "start_seq": "2"},
        {"phase": "failed", "failure": BAD},
    ],
    ids=str,
)
@pytest.mark.parametrize("begun", [False, True])
def test_who_waits_for_an_instance_that_is_gone_is_told(
    faulty: FaultyStore,
    life: Life,
    monkeypatch: pytest.MonkeyPatch,
    after: dict[str, str],
    begun: bool,
) -> None:
    life.wake()
    ready = life.now

    async def go() -> list[Message]:
        mute = Mute()
        async with asked(faulty, ready, monkeypatch, mute=mute) as (made, task, sent):
            if begun:
                mute.says.put_nowait(HEAD + PIECE)
            done, _ = await asyncio.wait([task], timeout=0.6)
            assert not done  # nothing is known against its instance
            assert made.usage.in_flight("main") == 1
            for _ in range(60):
                made.know(changed(ready, **after))
                done, _ = await asyncio.wait([task], timeout=0.1)
                if done:
                    break
            assert made.usage.in_flight("main") == 0
            with contextlib.suppress(AnswerCut):  # the client sees that it is not whole
                await task
            return sent

    sent = asyncio.run(go())
    if begun:
        assert sent[0]["status"] == 200
        assert all(message.get("more_body", True) for message in sent)  # it is not whole
    else:
        assert sent[0]["status"] in (502, 503)


@pytest.mark.parametrize(
    "after", [{"phase": "off", **GONE}, {"phase": "failed", "failure": BAD}], ids=str
)
def test_an_answer_that_moves_is_left_alone(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch, after: dict[str, str]
) -> None:
    """The cloud may be wrong; the bytes are not."""
    life.wake()
    ready = life.now

    async def go() -> None:
        mute = Mute()
        async with asked(faulty, ready, monkeypatch, mute=mute) as (made, task, sent):
            monkeypatch.setattr(links, "MOVING", 2.0)
            mute.says.put_nowait(HEAD)
            for _ in range(30):
                made.know(changed(ready, **after))
                mute.says.put_nowait(PIECE)
                await asyncio.sleep(0.15)
            mute.says.put_nowait(b"0\r\n\r\n")
            await asyncio.wait_for(task, 5)
            assert b"".join(message.get("body", b"") for message in sent) == b"abc" * 30

    asyncio.run(go())


@pytest.mark.parametrize(
    "after",
    [
        None,
        {"phase": "off"},
        {"phase": "off", "observed": "stopped", "observed_at": "1000", "began_at": "900"},
        {"phase": "off", "observed": "unknown", "observed_at": LATER},
        {"phase": "stopping", "observed": "running", "observed_at": LATER},
    ],
    ids=str,
)
def test_an_empty_or_a_stale_store_is_no_proof(
    faulty: FaultyStore,
    life: Life,
    monkeypatch: pytest.MonkeyPatch,
    after: dict[str, str] | None,
) -> None:
    """FLUSHALL, or a failover to what was long ago, says nothing of the work of the node."""
    life.wake()
    ready = life.now

    async def go() -> None:
        mute = Mute()
        async with asked(faulty, ready, monkeypatch, mute=mute) as (made, task, sent):
            lost = dataclasses.replace(ready, state={}, leases=())
            for _ in range(10):
                made.know(lost if after is None else changed(ready, **after))
                await asyncio.sleep(0.1)
            assert not task.done()
            mute.says.put_nowait(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await asyncio.wait_for(task, 5)
            assert sent[0]["status"] == 200

    asyncio.run(go())


def resting(life: Life, **fields: Any) -> Snapshot:
    """What a proxy knows after such a report of the agent."""
    gpus = (GpuFigures(index="0", utilisation_percent=fields.pop("percent", 0.0)),)
    resources = Resources(gpus=gpus, gpus_age=fields.pop("gpus_age", 0.5))
    heard_ago = fields.pop("heard_ago", 1.0)
    report = Report(
        gpu="main",
        boot_id="boot-0001",
        start_seq=1,
        state="ready",
        resources=fields.pop("resources", resources),
        **fields,
    )
    now = life.now
    seen_at = (now.now - heard_ago) * 1000
    node = {**now.node, "report": report.model_dump_json(), "seen_at": f"{seen_at:.0f}"}
    return dataclasses.replace(now, node=node)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, True),
        ({"active": 1}, False),
        ({"percent": 11.0}, False),
        ({"percent": None}, False),
        ({"gpus_age": 90.0}, False),
        ({"resources": Resources()}, False),
        ({"heard_ago": 90.0}, False),
    ],
    ids=str,
)
def test_a_service_that_hangs_does_not_hold_its_client_for_ever(
    faulty: FaultyStore,
    life: Life,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    ends: bool,
) -> None:
    """It is ended only if the agent has said all the time that nothing works."""
    monkeypatch.setattr(links, "HOLLOW", 1.0)
    life.wake()
    at_rest, known = resting(life), resting(life, **fields)

    async def go() -> None:
        async with asked(faulty, at_rest, monkeypatch, mute=Mute()) as (made, task, sent):
            for step in range(30):
                made.know(known if step == 5 else at_rest if ends else known)
                await asyncio.sleep(0.1)
            assert task.done() == ends
            assert not ends or sent[0]["status"] == 502

    asyncio.run(go())


@pytest.mark.parametrize("healthy", [True, False])
@pytest.mark.parametrize("reports", [True, False])
def test_a_long_silent_generation_lives_while_the_service_answers_a_probe(
    faulty: FaultyStore,
    life: Life,
    monkeypatch: pytest.MonkeyPatch,
    healthy: bool,
    reports: bool,
) -> None:
    """Its agent may hang, or have another secret; where the agent reports, that report counts."""
    life.wake()
    ready = life.now
    heard_at = str(int(ready.now * 1000) - (0 if reports else 600_000))
    known = dataclasses.replace(ready, node={**ready.node, "seen_at": heard_at})

    class Service(Mute):
        async def __call__(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            if healthy and (await reader.readline()).startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            await super().__call__(reader, writer)

    async def go() -> None:
        async with asked(faulty, known, monkeypatch, mute=Service()) as (made, task, sent):
            silence = made.usage.silence("main")
            longest = 0.0
            for _ in range(30):
                made.know(known)
                await asyncio.sleep(0.1)
                longest = max(longest, silence.seconds)
            assert (longest < 1.0) == (healthy and not reports)
            made.know(changed(known, phase="failed", failure=BAD))
            await asyncio.sleep(0.3)
            assert task.done() == (longest >= 1.0), sent

    asyncio.run(go())
