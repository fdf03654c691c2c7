"""Requests judged by a snapshot that is older than what is so."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from proxy.data.exchange import Exchange
from proxy.http.cut import AnswerCut
from proxy.http.request import Message
from qwenctl.core.phase import Phase
from qwenctl.protocol.messages import Report, ServiceState
from tests.integration.proxy.parts import (
    FORM,
    JSON,
    SAME,
    FaultyStore,
    Parts,
    gone,
    into,
    leaving,
    nothing_more,
    parts,
    scope,
    soon,
)
from tests.simulation.life import Life
from tests.simulation.puppets import GPU


@pytest.mark.parametrize(
    ("wake_on", "headers"),
    [
        ("never", JSON),
        ("never", {**JSON, **SAME}),
        ("click", {**JSON, **SAME}),
    ],
)
def test_what_may_not_wake_does_not_by_an_old_snapshot_either(
    faulty: FaultyStore, life: Life, wake_on: str, headers: dict[str, str]
) -> None:
    life.wake()
    life.store.release(GPU, actor="eve")
    assert life.step() is Phase.DRAINING
    draining = life.now
    life.run(30)
    assert life.now.phase is Phase.OFF

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty, wake_on=wake_on) as made:
            made.know(draining)
            return await made.ask(**headers)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "not_ready")
    assert "demand" in faulty.asked  # it was judged by the old snapshot first
    assert life.leases == []
    life.run(5)
    assert life.now.phase is Phase.OFF
    assert len(life.cloud.starts) == 1


def test_a_part_of_running_work_is_not_forwarded_into_a_stop(
    faulty: FaultyStore, life: Life
) -> None:
    old = leaving(life)
    life.clock.advance(5)
    life.controller.step()
    assert life.now.phase is Phase.STOPPING

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty) as made:

            async def forward(*_: object) -> int:
                raise AssertionError("it is too late to forward it")

            made.know(old)
            made.data._forward = forward  # type: ignore[assignment]
            return await made.ask(**FORM)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "not_ready")
    assert "stopping" in problem["detail"]


def test_a_part_of_running_work_holds_the_stop_back_before_it_is_forwarded(
    faulty: FaultyStore, life: Life
) -> None:
    old = leaving(life)
    life.clock.advance(5)

    async def go() -> list[Phase]:
        async with parts(faulty) as made:
            made.know(old)
            seen: list[Phase] = []

            async def forward(*_: object) -> int:
                life.controller.step()
                seen.append(life.now.phase)
                assert made.usage.in_flight(GPU) == 1
                return 200

            made.data._forward = forward  # type: ignore[assignment]
            await made.data(scope("POST", FORM), nothing_more, into([]))
            return seen

    assert asyncio.run(go()) == [Phase.DRAINING]
    assert "request:127.0.0.1" not in [lease.name for lease in life.now.leases]
    life.controller.step()
    assert life.now.phase is Phase.STOPPING


def test_a_part_of_running_work_is_forwarded_without_the_store(life: Life) -> None:
    """Nobody can stop the instance then."""
    old = leaving(life)

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(gone()) as made:
            made.know(old)
            return await made.ask(**FORM)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (502, "node_unreachable")  # it was tried


def test_a_node_with_services_on_other_ports_than_the_settings_say_is_told(life: Life) -> None:
    old = leaving(life)
    service = ServiceState(name="webui", state="ready", port=7999)
    report = Report(gpu=GPU, boot_id="boot-0001", start_seq=1, state="ready", services=(service,))
    heard = {"report": report.model_dump_json(), "seen_at": str(int(old.now * 1000))}

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(gone()) as made:
            made.know(replace(old, node={**old.node, **heard}))
            return await made.ask(**FORM)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (502, "node_unreachable")
    assert "the node runs webui on port 7999, but these settings say port" in problem["detail"]


def test_who_may_not_wake_is_judged_anew_once_the_cloud_takes_the_instance_back(
    faulty: FaultyStore, life: Life
) -> None:
    """The proxy learns of the notice while it asks for a lease."""
    life.wake()
    life.store.release(GPU, actor="eve")
    assert life.step() is Phase.DRAINING
    life.clock.advance(1)  # the request comes after that
    before = life.now
    life.node.interrupted = True
    life.node.speak()

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty, wake_on="never") as made:
            made.know(before)
            asking = asyncio.ensure_future(made.ask())
            await soon(lambda: "demand" in faulty.asked, 10, "the question")
            await made.snapshots.refresh(GPU)
            return await asyncio.wait_for(asking, 20)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "not_ready")
    assert "command line" in problem["detail"]
    assert life.leases == []


def test_the_store_is_lost_between_snapshot_and_demand(
    life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    asleep = life.now

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(gone()) as made:
            made.know(asleep)
            return await made.ask()

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "store_lost")
    assert "Traceback" not in caplog.text


def test_many_requests_to_a_dead_node(faulty: FaultyStore, life: Life) -> None:
    life.wake()

    async def one(made: Parts, after: float) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(after)
        return await made.ask()

    async def go() -> list[tuple[int, dict[str, Any]]]:
        async with parts(faulty) as made:
            await made.snapshots.start()
            faulty.asked.clear()
            return await asyncio.gather(*(one(made, 0.01 * number) for number in range(60)))

    answers = asyncio.run(go())
    assert {(status, problem["code"]) for status, problem in answers} == {(502, "node_unreachable")}
    assert 1 <= faulty.asked.count("look") <= 6
    # Each asks once for one younger than itself, and many of these are one; then twice a second.
    assert faulty.asked.count("snapshot") <= 100


def test_a_failure_is_told_in_one_line(faulty: FaultyStore, life: Life) -> None:
    life.wake()
    life.node.mood = "broken"
    life.step()
    node = life.now.node
    report = Report(
        gpu=GPU,
        boot_id=node["boot_id"],
        start_seq=int(node["start_seq"]),
        state="failed",
        error="the service crashes\nKeyError: 'TOKEN=abc'",
    )
    life.store.report(report, "nonce-of-the-failure", heartbeat=5.0)
    assert life.step() is Phase.FAILED

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty, wake_on="never") as made:
            return await made.ask()

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "service_failed")
    assert problem["detail"].endswith("the service crashes")


class TokenCount:
    """A response observer that adds up the tokens which an OpenAI-like stream tells at its end."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.broken = 0
        self._tail = b""

    def __call__(self, exchange: Exchange) -> TokenCount | None:
        self._who = exchange.lease
        return self if exchange.request.path.startswith("/v1/") else None

    def started(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._tail = b""

    def passed(self, piece: bytes) -> None:
        self._tail = (self._tail + piece)[-4096:]

    def ended(self, *, complete: bool) -> None:
        last = self._tail.rpartition(b"data: ")[2]
        if complete:
            self.tokens[self._who] = self.tokens.get(self._who, 0) + json.loads(last)["tokens"]
        else:
            self.broken += 1


async def streaming_node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a stream whose end tells the tokens; break off at /v1/broken."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    for text in (b"data: {}\n\n", b'data: {"to', b'kens": 7}\n\n'):
        writer.write(b"%x\r\n%s\r\n" % (len(text), text))
        await writer.drain()
        await asyncio.sleep(0.01)
    if b"/v1/broken" not in head:
        writer.write(b"0\r\n\r\n")
    writer.close()


def test_a_response_observer_of_our_own_sees_the_answers_it_wants(
    faulty: FaultyStore, life: Life
) -> None:
    life.wake()
    count = TokenCount()

    async def go() -> list[list[Message]]:
        async with parts(faulty, response_observers=[count]) as made:
            port = made.config.gpu[GPU].port
            server = await asyncio.start_server(streaming_node, "127.0.0.1", port)
            answers: list[list[Message]] = []
            for path in ("/v1/chat", "/other", "/v1/broken", "/v1/chat"):
                answers.append([])
                with contextlib.suppress(AnswerCut):  # the client sees that it is not whole
                    await made.data(scope("POST", JSON, path=path), nothing_more, into(answers[-1]))
            server.close()
            return answers

    answers = asyncio.run(go())
    bodies = [b"".join(message.get("body", b"") for message in answer) for answer in answers]
    assert bodies[0] == bodies[1] == b'data: {}\n\ndata: {"tokens": 7}\n\n'
    assert list(count.tokens.values()) == [14]
    assert count.broken == 1
