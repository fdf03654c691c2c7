"""The data plane tells its observer what it decided and what it has forwarded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.http.cut import AnswerCut
from proxy.http.metrics import Metrics
from tests.integration.proxy.parts import FaultyStore, Parts, into, nothing_more, parts, scope
from tests.simulation.life import Life
from tests.simulation.puppets import GPU

ANSWER = b"HTTP/1.1 418 x\r\nContent-Length: 2\r\n\r\nok"
SLOW = 0.2


class Recorder(Metrics):
    """Metrics that also write down which hooks were called."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[tuple[Any, ...]] = []
        self.sent: list[Any] = []

    def admitted(self, gpu: str, decision: str) -> None:
        super().admitted(gpu, decision)
        self.hooks.append(("admitted", gpu, decision))

    def forwarded(self, gpu: str, status: int, seconds: float) -> None:
        assert self.sent[-1]["more_body"] is False  # to its last byte
        assert SLOW <= seconds < 30
        self.hooks.append(("forwarded", gpu, status))


async def node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a request, its last byte a moment after the rest."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER[:-1])
    await writer.drain()
    await asyncio.sleep(SLOW)
    writer.write(ANSWER[-1:])
    await writer.drain()
    writer.close()


async def ask(made: Parts, recorder: Recorder) -> int:
    recorder.sent.clear()
    await made.data(scope("GET"), nothing_more, into(recorder.sent))
    return int(recorder.sent[0]["status"])


def test_decisions_and_forwarded_answers_reach_the_observer(
    faulty: FaultyStore, life: Life
) -> None:
    recorder = Recorder()

    async def go() -> None:
        async with parts(faulty, metrics=recorder) as made:
            assert await ask(made, recorder) == 503
            assert recorder.hooks == [("admitted", GPU, "unready")]
            recorder.hooks.clear()
            life.wake()
            made.know(life.now)
            port = made.config.gpu[GPU].port
            async with await asyncio.start_server(node, "127.0.0.1", port):
                assert await ask(made, recorder) == 418

    asyncio.run(go())
    assert recorder.hooks == [("admitted", GPU, "forward"), ("forwarded", GPU, 418)]


def test_an_answer_that_breaks_off_is_not_forwarded(faulty: FaultyStore, life: Life) -> None:
    recorder = Recorder()

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER[:-1])
        await writer.drain()
        writer.close()

    async def go() -> None:
        async with parts(faulty, metrics=recorder) as made:
            life.wake()
            made.know(life.now)
            async with await asyncio.start_server(broken, "127.0.0.1", made.config.gpu[GPU].port):
                with pytest.raises(AnswerCut):
                    await ask(made, recorder)

    asyncio.run(go())
    assert recorder.hooks == [("admitted", GPU, "forward")]
