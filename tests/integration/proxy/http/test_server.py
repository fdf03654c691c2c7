"""Heads of requests without end: refused early, whatever part of them is too large."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from proxy.http import server
from proxy.http.server import MAX_FIELDS, MAX_HEAD, MAX_URL
from tests.integration.proxy.http import alone
from tests.integration.proxy.running import RawClient, RunningProxy

START = b"GET /x HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = (
    b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"
)
MIB = 1 << 20


def endless(start: bytes, piece: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield piece * (MIB // 16 // len(piece) + 1)


FLOODS = {
    "lines": (endless(START, b"X-A: b\r\n"), 431),
    "a line": (endless(START + b"X-A: ", b"a"), 431),
    "a name": (endless(START, b"a"), 431),
    "an address": (endless(b"GET /", b"a"), 414),
    "empty lines": (endless(b"", b"\r\n"), 431),
    "trailers": (endless(UPLOAD + b"0\r\n", b"X-A: b\r\n"), 0),
    "a trailer": (endless(UPLOAD + b"0\r\nX-A: ", b"a"), 0),
    "a chunk's extension": (endless(UPLOAD + b"4;", b"a"), 0),
    "bytes that are no HTTP": (endless(b"", b"\x00"), 400),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_head_without_end_is_refused_and_costs_no_memory(ready: RunningProxy, what: str) -> None:
    pieces, status = FLOODS[what]
    before = ready.memory
    with RawClient(ready.port, timeout=5.0) as client:
        assert sent_until_refused(client, pieces) < 20 * MIB
    assert ready.memory - before < 20 * MIB
    assert requests.get(ready.url("/_qwenctl/healthz"), timeout=5).ok
    if status:
        assert refusal(ready, next_of(what))["status"] == status


def sent_until_refused(client: RawClient, pieces: Iterator[bytes]) -> int:
    sent, began = 0, time.monotonic()
    with contextlib.suppress(OSError):  # reset, or a broken pipe
        while time.monotonic() - began < 30:
            piece = next(pieces)
            client.send(piece)
            sent += len(piece)
    return sent


def next_of(what: str) -> bytes:
    """A flood's first pieces: all that a client sends that then waits for the answer."""
    whole = {
        "lines": START + b"X-A: b\r\n" * (MAX_FIELDS + 1),
        "a line": START + b"X-A: " + b"a" * MAX_HEAD,
        "a name": START + b"a" * MAX_HEAD,
        "an address": b"GET /" + b"a" * MAX_URL + b" HTTP/1.1\r\n\r\n",
        "empty lines": b"\r\n" * MAX_HEAD,
        "bytes that are no HTTP": b"\x00" * 100,
    }
    return whole[what]


def refusal(proxy: RunningProxy, content: bytes) -> dict[str, Any]:
    with RawClient(proxy.port) as client:
        client.send(content)
        status, headers, body = client.answer()
        assert client.file.read() == b"", "the connection is closed"
    assert headers["content-type"].startswith("application/problem+json")
    assert headers["connection"] == "close"
    problem: dict[str, Any] = json.loads(body)
    assert problem["status"] == status
    return problem


def test_what_is_within_the_bounds_arrives(ready: RunningProxy) -> None:
    fields = b"".join(b"X-%d: b\r\n" % number for number in range(100))
    long = b"X-Long: " + b"a" * (MAX_HEAD // 2) + b"\r\n"
    url = b"/_qwenctl/healthz?" + b"q" * (MAX_URL // 2)
    with RawClient(ready.port) as client:
        for _ in range(3):  # the bounds are those of a request, not of the connection
            client.send(
                b"GET " + url + b" HTTP/1.1\r\nHost: localhost\r\n" + fields + long + b"\r\n"
            )
            assert client.answer()[0] == 200


def test_a_body_in_tiny_chunks_is_no_head(ready: RunningProxy) -> None:
    chunks = 100_000
    with RawClient(ready.port, timeout=60) as client:
        client.send(UPLOAD)
        for _ in range(10):
            client.send(b"1;x=y\r\na\r\n" * (chunks // 10))
        client.send(b"0\r\n\r\n")
        assert client.answer()[0] == 200


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Runs a client's blocking code against the protocol alone, with short bounds of time."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(server, "LINGER", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.5)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    return lambda client: alone.serve(app, client)


def test_a_head_must_arrive_in_time(serve: Callable[[Callable[[int], None]], None]) -> None:
    def client(port: int) -> None:
        with RawClient(port) as silent, RawClient(port) as half, RawClient(port) as again:
            half.send(START)
            again.send(START + b"\r\n")
            assert half.answer()[0] == 408
            assert silent.file.read() == b""
            assert again.answer()[0] == 204, "an answer may take its time"
            again.send(START)
            assert again.answer()[0] == 408

    serve(client)


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
)
LENGTH = b"Content-Length: 11\r\n\r\nhello there"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nthere\r\n0\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 1000], ids=["one segment", "two", "single bytes"])
@pytest.mark.parametrize("body", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize(
    "upgrade", [H2C, WEBSOCKET, b"Connection: upgrade\r\nUpgrade: TLS/1.0, h2c\r\n"]
)
def test_an_upgrade_that_is_not_ours_is_ignored(
    ready: RunningProxy, upgrade: bytes, body: bytes, pieces: int
) -> None:
    """As JDK clients and ``curl --http2`` ask for it."""
    content = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n" + upgrade + body
    with RawClient(ready.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):  # and the connection goes on
            cut = content.index(b"\r\n\r\n") + 4
            parts = {1: [content], 2: [content[:cut], content[cut:]]}.get(
                pieces, [content[at : at + 1] for at in range(len(content))]
            )
            for part in parts:
                client.send(part)
                time.sleep(0.02 if pieces == 2 else 0)
            status, _, answer = client.answer()
            assert status == 200
            echo = json.loads(answer)
            assert echo["sha256"] == hashlib.sha256(b"hello there").hexdigest()
            assert not {"upgrade", "http2-settings"} & {name.lower() for name, _ in echo["headers"]}


def test_a_get_with_an_upgrade_that_is_not_ours_is_served(ready: RunningProxy) -> None:
    with RawClient(ready.port) as client:
        for _ in range(2):
            client.send(b"GET /_qwenctl/healthz HTTP/1.1\r\nHost: localhost\r\n" + H2C + b"\r\n")
            assert client.answer()[0] == 200


@pytest.mark.parametrize("path", ["/_qwenctl/api/wake", "/x"])
@pytest.mark.parametrize(
    "body",
    [b"zz\r\n", b"3\r\nabc\r\nzz\r\n"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_broken_framing_is_answered(
    ready: RunningProxy, path: str, body: bytes, at_once: bool
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawClient(ready.port) as client:
        client.send(head.encode() + (body if at_once else b""))
        if not at_once:
            time.sleep(0.1)
            client.send(body)
        status, _, _ = client.answer()
        assert status in (400, 502 if path == "/x" else 400)
        assert client.file.read() == b""


@pytest.mark.parametrize("size", [MAX_HEAD, 90_000, 200_000])
def test_a_head_is_not_larger_because_it_comes_at_once(ready: RunningProxy, size: int) -> None:
    lines = b"".join(b"X-%d: " % n + b"a" * (size // 64) + b"\r\n" for n in range(64))
    assert refusal(ready, START + lines + b"\r\n")["status"] == 431


def test_connect_is_refused_at_once(ready: RunningProxy) -> None:
    """llhttp takes every CONNECT for an upgrade."""
    logged = len(ready.log)
    for _ in range(50):
        content = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n"
        assert refusal(ready, content)["status"] == 400
    assert len(ready.log) - logged < 50 * 500


def test_pipelined_requests_with_an_upgrade_are_all_answered(ready: RunningProxy) -> None:
    number = 1000
    request = b"GET /_qwenctl/healthz HTTP/1.1\r\nHost: localhost\r\n" + H2C + b"\r\n"
    with RawClient(ready.port, timeout=30) as client:
        client.send(request * number)
        assert {client.answer()[0] for _ in range(number)} == {200}


def test_the_rest_of_a_refused_body_does_not_block_the_connection(ready: RunningProxy) -> None:
    """Whoever does not look at the answer before it has sent the body, as Caddy, goes on with it."""
    size = 2_000_000
    with RawClient(ready.port) as client:
        for _ in range(3):
            head = f"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: {size}\r\n\r\n"
            client.send(head.encode() + b"x" * (size // 2))
            status, _, body = client.answer()
            assert (status, json.loads(body)["code"]) == (421, "unknown_host")
            client.send(b"x" * (size // 2))
