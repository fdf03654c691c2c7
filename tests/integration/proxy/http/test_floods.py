"""Floods of connections, half-sent requests and large messages, on a real proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from proxy.http import pace, server
from proxy.http.capacity import CHECK, SPARE, Capacity, bearable
from proxy.http.server import protocols
from proxy.http.websocket_server import MAX_MESSAGE, WebSocket
from qwenctl.protocol.messages import REPORT_PATH
from tests.integration.proxy.running import RawClient, RunningProxy, gpu, running
from tests.support.waiting import until

MIB = 1 << 20
LIMIT = 400
"""Descriptors of the small proxy."""

POST = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy with few descriptors, whose GPU takes a while to boot."""
    gpus = {"main": gpu(preset="generic", local={"boot_seconds": 3, "stop_seconds": 0.05})}
    with running(tmp_path_factory.mktemp("small"), limit=f"-n {LIMIT}", gpu=gpus) as proxy:
        yield proxy


def clients(stack: contextlib.ExitStack, port: int, count: int, content: bytes) -> list[RawClient]:
    made = []
    for _ in range(count):
        client = stack.enter_context(RawClient(port, timeout=30))
        if content:
            client.send(content)
        made.append(client)
    return made


def healthy(proxy: RunningProxy) -> bool:
    return requests.get(proxy.url("/_qwenctl/healthz"), timeout=5).ok


def test_more_requests_than_descriptors_bear_are_refused_and_the_gpu_starts(
    small: RunningProxy,
) -> None:
    bears = bearable(LIMIT, 1)
    with contextlib.ExitStack() as stack:
        made = clients(stack, small.port, bears + 150, POST + b"Content-Length: 2\r\n\r\n{}")
        assert healthy(small), "probes are answered"
        refused = requests.post(small.url(REPORT_PATH), data=b"{}", timeout=5)
        assert refused.status_code == 401, "nodes are heard"
        statuses = []
        for client in made:
            status, headers, body = client.answer()
            statuses.append(status)
            if status == 503:
                assert json.loads(body)["code"] == "too_many_connections"
                assert headers["content-type"].startswith("application/problem+json")
                assert int(headers["retry-after"]) > 0
    assert set(statuses) == {200, 503}
    assert bears - 5 <= statuses.count(200) <= bears
    assert small.snapshot().phase.serves
    assert "Too many open files" not in small.log
    assert "Traceback" not in small.log


@pytest.mark.parametrize(
    "content", [b"", POST, b"GET /_qwenctl/healthz HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_idle_and_half_sent_connections_keep_nobody_out(
    small: RunningProxy, content: bytes
) -> None:
    bears = bearable(LIMIT, 1)
    with contextlib.ExitStack() as stack:
        made = clients(stack, small.port, 2 * bears, content)
        assert healthy(small)
        assert requests.get(small.url("/_qwenctl/readyz"), timeout=5).ok
        until(lambda: descriptors(small) <= bears + SPARE + 60, 15, "the oldest are closed")
        assert made[-1].socket.fileno() > 0
        made[-1].socket.settimeout(0.1)
        if content != made[0]:
            with contextlib.suppress(TimeoutError):
                assert made[-1].file.read(1) != b"", "the youngest lives"
    assert "Traceback" not in small.log


def descriptors(proxy: RunningProxy) -> int:
    return psutil.Process(proxy.process.pid).num_fds()


def test_a_storm_beyond_all_descriptors_does_not_spin(ready: RunningProxy) -> None:
    process = psutil.Process(ready.process.pid)
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 3, limits[1]))
    try:
        with contextlib.ExitStack() as stack:
            clients(stack, ready.port, 100, b"")
            before = sum(process.cpu_times()[:2])
            time.sleep(1.0)
            assert sum(process.cpu_times()[:2]) - before < 0.5
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
    assert healthy(ready)


def test_the_soft_limit_is_raised_and_children_do_not_inherit_that(tmp_path: Path) -> None:
    with running(tmp_path, limit="-S -n 200") as proxy:
        proxy.wake()
        soft, hard = resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard or soft >= 1 << 20
        file = next((tmp_path / "state").glob("instances/*/*/status.json"))
        machine = psutil.Process(json.loads(file.read_text())["pid"])
        for process in (machine, *machine.children(recursive=True)):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (200, hard)


# Bodies and readers that stand still


Run = Callable[[Callable[[int], None]], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a client's blocking code against the server alone, with short bounds of time."""
    monkeypatch.setattr(pace, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(pace, "READER_SECONDS", 0.5)
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await talkative(receive, send)
            return
        if scope["path"] == "/held":
            await asyncio.sleep(2.5)
        seen = "whole"
        while scope["path"] != "/early" and (message := await receive()).get("more_body"):
            pass
        if scope["path"] != "/early" and message["type"] == "http.disconnect":
            seen = "gone"
        ENDS[scope["path"]] = seen
        if scope["path"] == "/early":
            await send({"type": "http.response.start", "status": 413, "headers": EMPTY})
            await send({"type": "http.response.body"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/at-once":
            await send({"type": "http.response.body", "body": bytes(LARGE)})
            return
        if scope["path"] == "/quiet":
            await asyncio.sleep(2.5)
        while scope["path"] == "/endless" and seen == "whole":
            await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
            if (await_end := asyncio.ensure_future(receive())) and await_end.done():
                break
            await asyncio.sleep(0)
            if await_end.done():
                seen = ENDS["/endless"] = "gone"
            await_end.cancel()
        await send({"type": "http.response.body"})

    def run(client: Callable[[int], None]) -> None:
        async def go() -> None:
            listening = socket.create_server(("127.0.0.1", 0))
            made: Any = protocols(Capacity())
            running = uvicorn.Server(
                uvicorn.Config(app, http=made, ws=WebSocket, lifespan="off", log_config=None)
            )
            task = asyncio.ensure_future(running.serve([listening]))
            await asyncio.to_thread(client, listening.getsockname()[1])
            running.should_exit = True
            await task

        asyncio.run(go())

    return run


async def talkative(receive: Any, send: Any) -> None:
    """Talk over a WebSocket until the client says a word."""
    await receive()
    await send({"type": "websocket.accept"})
    word = asyncio.ensure_future(receive())
    word.add_done_callback(lambda _: ENDS.update({"/ws": word.result().get("text", "")}))
    while not word.done():
        await send({"type": "websocket.send", "bytes": bytes(40_000)})
        await asyncio.sleep(0)


ENDS: dict[str, str] = {}
EMPTY = [(b"content-length", b"0")]
LARGE = 64 * MIB
"""More than the kernel's buffers take."""


def upload(path: str, size: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


def test_a_body_that_stops_is_refused_and_a_slow_one_is_not(serve: Run) -> None:
    def client(port: int) -> None:
        with RawClient(port) as stopped, RawClient(port) as slow, RawClient(port) as chunked:
            stopped.send(upload("/stopped", 1000) + b"x")
            chunked.send(b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx")
            slow.send(upload("/slow", 10))
            for _ in range(10):
                time.sleep(0.25)
                slow.send(b"x")
            assert slow.answer()[0] == 200
            for late in (stopped, chunked):
                status, headers, _ = late.answer()
                assert (status, headers["connection"]) == (408, "close")
                assert late.file.read() == b""
        assert ENDS["/stopped"] == "gone"

    serve(client)


def test_a_held_upload_may_wait_as_long_as_we_do_not_read(serve: Run) -> None:
    def client(port: int) -> None:
        body = bytes(4 * MIB)
        with RawClient(port, timeout=30) as held, RawClient(port, timeout=30) as asking:
            asking.send(
                b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            sender = threading.Thread(target=held.send, args=(upload("/held", len(body)) + body,))
            sender.start()
            assert held.answer()[0] == 200
            sender.join()
            assert asking.head()[0] == 100
            asking.send(b"x")
            assert asking.answer()[0] == 200

    serve(client)


def test_a_client_that_never_reads_is_closed_and_a_quiet_generation_is_not(serve: Run) -> None:
    def client(port: int) -> None:
        with RawClient(port) as deaf, RawClient(port) as quiet:
            quiet.send(b"GET /quiet HTTP/1.1\r\nHost: x\r\n\r\n")
            deaf.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: ENDS.get("/endless") == "gone", 4 + CHECK, "the end of the deaf client")
            assert quiet.answer()[0] == 200

    ENDS.clear()
    serve(client)


@pytest.mark.parametrize("keep", ["close", "keep-alive"])
def test_a_client_that_does_not_read_the_rest_is_closed(serve: Run, keep: str) -> None:
    """The application has sent all of it, and the server has it to deliver."""

    def client(port: int) -> None:
        with RawClient(port) as deaf:
            deaf.send(f"GET /at-once HTTP/1.1\r\nHost: x\r\nConnection: {keep}\r\n\r\n".encode())
            time.sleep(1.0 + 3 * CHECK)
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := deaf.socket.recv(MIB):
                    got += len(piece)
            assert got < LARGE

    serve(client)


def test_the_rest_of_a_body_that_was_answered_early_has_a_bound_of_time(serve: Run) -> None:
    def client(port: int) -> None:
        with RawClient(port) as late:
            late.send(upload("/early", 1000) + b"x")
            assert late.answer()[0] == 413
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 5:
                    late.send(b"x")
                    time.sleep(0.1)
            assert time.monotonic() - began < 3

    serve(client)


# Memory


def test_held_uploads_take_little_memory(tmp_path: Path) -> None:
    """Of each, half a megabyte was read, or a quarter."""
    gpus = {"main": gpu(preset="generic", local={"boot_seconds": 60})}
    with running(tmp_path, gpu=gpus) as proxy, contextlib.ExitStack() as stack:
        clients(stack, proxy.port, 2, POST + b"Content-Length: 2\r\n\r\n{}")  # imports and threads
        until(lambda: proxy.snapshot().phase.value == "starting", 20)
        time.sleep(0.5)
        before = proxy.memory
        for client in clients(stack, proxy.port, 200, POST + b"Content-Length: 20000000\r\n\r\n"):
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.socket.send(bytes(MIB))
        time.sleep(1.0)
        assert proxy.memory - before < 18 * MIB
        assert healthy(proxy)


@pytest.mark.parametrize("part", ["lines", "a line", "a status", "trailers", "an extension"])
def test_an_answer_of_the_node_without_end_costs_no_memory(ready: RunningProxy, part: str) -> None:
    before = ready.memory
    with RawClient(ready.port, timeout=3) as client:
        client.send(f"GET /endless?part={part.replace(' ', '%20')} HTTP/1.1\r\n".encode())
        client.send(b"Host: localhost\r\n\r\n")
        with contextlib.suppress(TimeoutError, AssertionError):
            status, _ = client.head()
            assert status in (200, 502)
    assert ready.memory - before < 20 * MIB
    assert healthy(ready)
    until(lambda: ready.journal_of("/endless?part=" + part.replace(" ", "%20"))[-1]["end"], 5)


def talk(proxy: RunningProxy, conversation: Callable[[Any], Any]) -> None:
    async def go() -> None:
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        async with connect(url, max_size=None, proxy=None) as opened:
            await asyncio.wait_for(conversation(opened), 30)

    asyncio.run(go())


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 200 * MIB])
@pytest.mark.parametrize("fragments", [1, 1000])
def test_a_message_that_is_too_large_ends_the_connection(
    ready: RunningProxy, size: int, fragments: int
) -> None:
    async def conversation(opened: Any) -> None:
        message = bytes(size)
        part = size // fragments + 1
        pieces = [message[at : at + part] for at in range(0, size, part)]
        with contextlib.suppress(ConnectionClosed):
            await opened.send(pieces if fragments > 1 else message)
        await opened.wait_closed()
        assert opened.close_code in (1009, 1006)

    before = ready.memory
    talk(ready, conversation)
    assert ready.memory - before < 4 * MAX_MESSAGE


def test_a_message_of_the_node_that_is_too_large_ends_the_connection(ready: RunningProxy) -> None:
    async def conversation(opened: Any) -> None:
        await opened.send(f"send {200 * MIB}")
        with pytest.raises(ConnectionClosed):
            await opened.recv()
        assert opened.close_code == 1009

    before = ready.memory
    talk(ready, conversation)
    assert ready.memory - before < 4 * MAX_MESSAGE


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    assert len(payload) < 126
    return struct.pack("!BB4s", opcode | 0x80 * fin, 0x80 | len(payload), bytes(4)) + payload


@pytest.mark.parametrize(
    "flood",
    [
        frame(0x1, b"a", fin=False) + frame(0x0, fin=False) * 10_000,
        frame(0x1, b"a", fin=False) + frame(0x0, b"ab", fin=False) * 10_000,
        frame(0x9, bytes(125)) * 5_000,
    ],
    ids=["empty fragments", "tiny fragments", "pings whose answers nobody reads"],
)
def test_tiny_frames_do_not_pile_up(ready: RunningProxy, flood: bytes) -> None:
    first = flood[: flood.index(b"a") + 1] if b"a" in flood[:10] else b""
    rest = flood[len(first) :]
    before = ready.memory
    with RawClient(ready.port) as client:
        client.send(HANDSHAKE + b"\r\n")
        assert client.head()[0] == 101
        client.socket.settimeout(1.0)
        client.send(first)
        until_ = time.monotonic() + 4
        with contextlib.suppress(OSError):
            while time.monotonic() < until_:
                client.send(rest)
        assert ready.memory - before < 24 * MIB
    assert healthy(ready)


def test_a_slow_reader_of_a_websocket_is_heard(serve: Run) -> None:
    """Who cannot take the answer as fast as it comes may still stop it, and answers pings."""

    def client(port: int) -> None:
        ENDS.pop("/ws", None)
        with RawClient(port) as slow:
            slow.send(HANDSHAKE + b"\r\n")
            time.sleep(0.3)  # what there is to write has piled up
            slow.send(frame(0x1, b"stop"))
            until(lambda: ENDS.get("/ws") == "stop", 0.8, "the word")

    serve(client)


def test_a_compressed_message_is_not_asked_for(ready: RunningProxy) -> None:
    """A bomb of permessage-deflate grows a thousandfold (RFC 7692)."""
    bomb = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    with RawClient(ready.port) as client:
        client.send(HANDSHAKE + bomb)
        status, headers = client.head()
        assert status == 101
        assert "sec-websocket-extensions" not in dict(headers)
        client.send(frame(0x41, b"compressed"))
        assert client.file.read(4)[:1] == b"\x88", "RSV1 without the extension: closed"
