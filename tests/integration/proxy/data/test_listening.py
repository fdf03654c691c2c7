"""An answer that comes over socket.io is work in flight; the chatter of an idle tab is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from proxy.data import usage
from proxy.http.request import Message
from tests.integration.proxy.parts import FaultyStore, Parts, into, nothing_more, parts, scope, soon
from tests.simulation.life import Life
from tests.unit.qwenctl.core.test_rules import TOKEN, TYPING, USAGE

PATH = "/ws/socket.io/"
LEASE = "request:127.0.0.1"


class OpenWebUI:
    """A node that says over socket.io what it is told to."""

    def __init__(self) -> None:
        self.says = asyncio.Queue[str]()
        self.headers: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers = dict(request.headers)
        if "Upgrade" not in request.headers:
            return web.Response(text=await self.says.get())
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while True:
            await socket.send_str(await self.says.get())


@contextlib.asynccontextmanager
async def talking(store: FaultyStore, life: Life) -> AsyncIterator[tuple[Parts, OpenWebUI]]:
    async with parts(store, preset="open-webui") as made:
        node, app = OpenWebUI(), web.Application()
        app.router.add_route("*", "/{rest:.*}", node.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", made.config.gpu["main"].port).start()
        made.know(life.now)
        made.usage.start()
        yield made, node
        await runner.cleanup()


def websocket() -> dict[str, Any]:
    headers = {"Sec-WebSocket-Key": "x", "Origin": "http://localhost"}
    return {**scope("GET", headers, PATH), "type": "websocket", "scheme": "ws", "subprotocols": []}


def joins() -> Any:
    """A client that opens the connection and says nothing."""
    opened = False

    async def receive() -> Message:
        nonlocal opened
        if not opened:
            opened = True
            return {"type": "websocket.connect"}
        return await nothing_more()

    return receive


async def until_told(sent: list[Message], text: str) -> None:
    for _ in range(250):
        if any(message.get("text") == text for message in sent):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(sent)


def test_tokens_over_a_websocket_are_work(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.wake()
    monkeypatch.setattr(usage, "QUIET", 1.5)

    async def go() -> None:
        async with talking(faulty, life) as (made, node):
            sent: list[Message] = []
            task = asyncio.ensure_future(made.data(websocket(), joins(), into(sent)))
            for chatter in ("2", USAGE, TYPING):
                node.says.put_nowait(chatter)
                await until_told(sent, chatter)
            assert made.usage.in_flight("main") == 0
            node.says.put_nowait(TOKEN)
            await until_told(sent, TOKEN)
            assert made.usage.in_flight("main") == 1
            await soon(lambda: {"inflight:me", LEASE} <= set(life.leases), 5, "the lease")
            # `down` lets it finish, and what comes after extends nothing.
            life.clock.advance(5)
            await asyncio.to_thread(life.store.release, "main", actor="ann")
            for _ in range(12):
                node.says.put_nowait(TOKEN)
                node.says.put_nowait("2")
                await asyncio.sleep(0.2)
            assert made.usage.in_flight("main") == 1
            assert "inflight:me" in life.leases
            await soon(lambda: life.leases == [], 5, "the end of it")
            assert made.usage.in_flight("main") == 0
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())


@pytest.mark.parametrize(("said", "works"), [(TOKEN, True), (f"2\x1e{USAGE}", False)])
def test_long_polling_is_asked_for_plain_text_and_searched(
    faulty: FaultyStore, life: Life, said: str, works: bool
) -> None:
    life.wake()

    async def go() -> None:
        async with talking(faulty, life) as (made, node):
            sent: list[Message] = []
            node.says.put_nowait(said)
            asked = scope("GET", {"Accept-Encoding": "gzip, deflate, br"}, PATH)
            await made.data(asked, nothing_more, into(sent))
            assert sent[0]["status"] == 200
            assert "gzip" not in node.headers.get("Accept-Encoding", "")
            assert made.usage.in_flight("main") == int(works)

    asyncio.run(go())


def test_answers_that_nobody_searches_may_be_compressed(faulty: FaultyStore, life: Life) -> None:
    life.wake()

    async def go() -> None:
        async with talking(faulty, life) as (made, node):
            node.says.put_nowait("x")
            asked = scope("GET", {"Accept-Encoding": "gzip"}, "/api/config")
            await made.data(asked, nothing_more, into([]))
            assert node.headers["Accept-Encoding"] == "gzip"

    asyncio.run(go())
