"""Clients that end their side of the connection, and wait for the answer; and clients that are gone."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from proxy.http import half_closed
from tests.integration.proxy.http import alone
from tests.integration.proxy.running import RawClient, RunningProxy, gpu, running
from tests.support.waiting import until

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ended(port: int, content: bytes) -> RawClient:
    client = RawClient(port)
    client.send(content)
    client.socket.shutdown(socket.SHUT_WR)
    return client


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "path", ["/_qwenctl/healthz", "/_qwenctl/api/status", "/echo", "/blob?size=3000000"]
)
def test_a_client_that_sends_nothing_more_gets_its_answer(
    ready: RunningProxy, path: str, version: str
) -> None:
    content = f"GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode()
    with ended(ready.port, content) as client:
        status, headers, body = client.answer()
        assert status == 200
        assert len(body) == int(headers["content-length"])
        assert client.file.read() == b""


def test_all_that_it_has_asked_for(ready: RunningProxy) -> None:
    upload = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
    get = GET.replace(b"/x", b"/_qwenctl/healthz")
    with ended(ready.port, upload + get + upload) as client:
        assert json.loads(client.answer()[2])["size"] == 5
        assert client.answer()[0] == 200
        assert json.loads(client.answer()[2])["size"] == 5
        assert client.file.read() == b""


@pytest.mark.parametrize(
    "content",
    [b"", GET[:-2], GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\nhalf"), GET + GET[:9]],
)
def test_half_a_request_is_none(ready: RunningProxy, content: bytes) -> None:
    with ended(ready.port, content) as client:
        if content.startswith(GET):
            assert client.answer()[0] == 200
        assert client.file.read() == b""


def test_a_refusal_reaches_it(ready: RunningProxy) -> None:
    with ended(ready.port, b"GET /x HTTP/1.1\r\n\r\n") as client:
        assert client.answer()[0] == 400


class Slow:
    """An application that answers late, and notes whom it has lost."""

    def __init__(self, before: float, after: float = 0.0) -> None:
        self.before, self.after = before, after
        self.lost = threading.Event()

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        await receive()
        gone = asyncio.ensure_future(receive())
        if await self._passes(self.before, gone):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            if await self._passes(self.after, gone):
                await send({"type": "http.response.body", "body": b"b"})
        gone.cancel()

    async def _passes(self, seconds: float, gone: asyncio.Future[Any]) -> bool:
        done, _ = await asyncio.wait([gone], timeout=seconds)
        if done:
            self.lost.set()
        return not done


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_closed, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(half_closed, "SILENT_SECONDS", 0.6)


@pytest.mark.usefixtures("quick")
def test_a_late_answer_reaches_a_client_that_waits() -> None:
    def client(port: int) -> None:
        with ended(port, GET) as waiting:
            assert waiting.head() == (100, [])
            assert waiting.answer()[2] == b"ab"
        with ended(port, GET.replace(b"1.1", b"1.0")) as old:
            assert old.head()[0] == 200
            assert old.file.read() == b"ab"

    app = Slow(0.4, 0.4)
    alone.serve(app, client)
    assert not app.lost.is_set()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("when", ["before the answer", "in it"])
def test_a_client_that_is_gone_is_noticed(version: bytes, when: str) -> None:
    app = Slow(60) if when == "before the answer" else Slow(0, 60)

    def client(port: int) -> None:
        with RawClient(port) as leaving:
            leaving.send(GET.replace(b"1.1", version))
            if when == "in it":
                assert leaving.head()[0] == 200
                leaving.file.read(4 if version == b"1.1" else 1)
        assert app.lost.wait(5)

    alone.serve(app, client)


def test_a_held_client_with_a_large_body_that_is_gone_is_noticed(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", idle_timeout=3, local={"fail": "boot_hangs"})}
    with running(tmp_path, gpu=gpus) as proxy:

        def held() -> bool:
            text = requests.get(proxy.url("/_qwenctl/metrics"), timeout=10).text
            return 'qwenctl_held_requests{gpu="main"} 1.0' in text

        head = (
            b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        for option in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):  # a reset, a FIN
            with RawClient(proxy.port) as leaving:
                leaving.send(head + bytes(100000))
                until(held, 10, "the hold")
                leaving.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            until(lambda: not held(), 10, "the end of the hold")
        with ended(proxy.port, head + bytes(100000)) as waiting:
            until(held, 10, "the hold")
            time.sleep(4)
            assert held()
            assert waiting.head()[0] == 100
        assert " ERROR " not in proxy.log


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("by", ["FIN", "reset"])
@pytest.mark.parametrize("when", ["before the answer", "in it"])
def test_a_client_that_is_gone_after_asking_ahead_is_noticed(when: str, by: str) -> None:
    app = Slow(60) if when == "before the answer" else Slow(0, 60)

    def client(port: int) -> None:
        with RawClient(port) as leaving:
            leaving.send(GET)
            if when == "in it":
                assert leaving.head()[0] == 200
            time.sleep(0.1)
            leaving.send(GET)
            time.sleep(0.1)
            if by == "reset":
                leaving.socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        assert app.lost.wait(5)

    alone.serve(app, client)
