"""HTTP/1.0 clients: answers end with the connection, which stays only where they ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.integration.proxy.http import alone
from tests.integration.proxy.running import RawClient, RunningProxy


def asked(path: str, *lines: str, method: str = "GET", version: str = "1.0") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/{version}", *lines, "", "")).encode()


@pytest.mark.parametrize("asks", [(), ("Connection: close",), ("Connection: keep-alive",)])
def test_an_answer_without_a_length_ends_with_the_connection(
    ready: RunningProxy, asks: tuple[str, ...]
) -> None:
    """Of the node, chunked or ended by its own connection, and our own event stream."""
    with RawClient(ready.port) as client:
        client.send(asked("/blob?size=200000&chunked=1", *asks))
        status, headers = client.head()
        body = client.file.read()
    assert status == 200
    assert dict(headers)["connection"] == "close"
    assert "transfer-encoding" not in dict(headers)
    assert body == (bytes(range(256)) * 1000)[:200_000]


def test_our_event_stream_has_no_chunks(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        client.send(asked("/_qwenctl/api/events", "Host: localhost"))
        status, headers = client.head()
        assert status == 200
        assert "transfer-encoding" not in dict(headers)
        assert client.file.readline() == b"event: status\n"
        assert json.loads(client.file.readline().removeprefix(b"data: "))["gpu"] == "main"


def test_the_connection_stays_where_the_client_asks(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        for path in ("/blob?size=5", "/_qwenctl/healthz"):
            client.send(asked(path, "Connection: Keep-Alive"))
            status, headers, _ = client.answer()
            assert (status, headers["connection"]) == (200, "keep-alive")
        client.send(asked("/blob?size=5", "Connection: keep-alive", method="HEAD"))
        assert dict(client.head()[1])["connection"] == "keep-alive"
        client.send(asked("/blob?size=5"))
        status, headers, body = client.answer()
        assert (status, headers["connection"], body) == (200, "close", bytes(range(5)))
        assert client.file.read() == b""


def test_an_upload_asks_for_no_interim_answer(ready: RunningProxy) -> None:
    lines = ("Content-Length: 3", "Expect: 100-continue")
    with RawClient(ready.port) as client:
        client.send(asked("/echo", *lines, method="POST") + b"abc")
        status, _, body = client.answer()
    assert (status, json.loads(body)["size"]) == (200, 3)


def test_it_cannot_upgrade(ready: RunningProxy) -> None:
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    with RawClient(ready.port) as client:
        client.send(asked("/echo", *lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
        assert client.answer()[0] == 200


def test_half_an_answer_is_no_whole_one() -> None:
    """Nothing but the end of the connection tells, so that it must be a reset."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.1)

    def client(port: int) -> None:
        with RawClient(port) as old:
            old.send(asked("/"))
            assert old.head()[0] == 200
            assert old.file.read(4) == b"half"
            with pytest.raises(ConnectionResetError):
                old.file.read()

    alone.serve(app, client)
