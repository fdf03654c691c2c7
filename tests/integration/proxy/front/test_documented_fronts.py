"""What clients get through the documented nginx and Caddy, as they would get it from the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from websockets.asyncio.client import connect

from qwenctl.core.phase import Phase
from tests.integration.proxy.fronts import in_front, program_of
from tests.integration.proxy.running import (
    KEY,
    PASSWORD,
    RawClient,
    RunningProxy,
    gpu,
    password_access,
    running,
)
from tests.support.waiting import until

MB = 1_000_000
BOOT = 4.0
"""Seconds of a slow boot: twice the time-outs of the test's nginx, which has 2 s for 60 s."""

HEADERS = {"X-API-Key": KEY}
PLANES = ["nginx", "caddy"]
FRONTS = [*PLANES, "nginx-tls", "caddy-tls"]


@dataclass
class Fronted:
    """A proxy of ours and a server in front of it."""

    name: str
    port: int
    proxy: RunningProxy

    @property
    def passes_on(self) -> bool:
        """Whether the server in front passes everything on, and is no data plane."""
        return self.name.endswith("-tls")

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextlib.contextmanager
def fronted(name: str, folder: Path, **settings: Any) -> Iterator[Fronted]:
    program_of(name)
    options = {
        "gate_headers": "x-forwarded" if name == "caddy" else "x-original",
        "trusted_proxies": ["127.0.0.1"],
    }
    with (
        running(folder / "proxy", proxy=options, **settings) as proxy,
        in_front(name, folder, proxy.port) as port,
    ):
        yield Fronted(name, port, proxy)


@pytest.fixture(scope="module", params=FRONTS)
def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fronted]:
    """Two tiers behind that server; the first is on, the second asleep and slow to start."""
    gpus = {
        "fast": gpu(preset="generic", tier="fast"),
        "slow": gpu(
            preset="generic", tier="slow", local={"boot_seconds": BOOT, "stop_seconds": 0.05}
        ),
    }
    folder = tmp_path_factory.mktemp(request.param)
    with fronted(request.param, folder, gpu=gpus, access=password_access()) as made:
        made.proxy.wake("fast")
        yield made


def pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


def post(front: Fronted, path: str, body: bytes, framing: str, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(
        front.url(path),
        data=body if framing == "length" else pieces(body),
        headers={**HEADERS, **named},
        timeout=60,
    )


def body_of(megabytes: int) -> bytes:
    return bytes(range(250)) * (megabytes * MB // 250)


FRAMINGS = ["length", "chunked"]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("megabytes", [2, 20])
def test_large_bodies_arrive(front: Fronted, megabytes: int, framing: str) -> None:
    body = body_of(megabytes)
    answer = post(front, f"/body?{megabytes}{framing}", body, framing)
    assert answer.status_code == 200, answer.text
    assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()


def test_large_bodies_wait_for_a_slow_boot(front: Fronted) -> None:
    """The bodies are not read meanwhile, so that the server in front can neither send nor read."""
    sizes = [(megabytes, framing) for megabytes in (0, 2, 20) for framing in FRAMINGS]

    def ask(size: tuple[int, str]) -> tuple[int, Any]:
        answer = post(front, "/held", body_of(size[0]), size[1], X_Qwenctl_Tier="slow")
        return answer.status_code, answer.json().get("sha256")

    with ThreadPoolExecutor(len(sizes)) as threads:
        answers = list(threads.map(ask, sizes))
    front.proxy.store.release("slow", actor="test")
    until(lambda: front.proxy.snapshot("slow").phase is Phase.OFF, 20, "its sleep")
    assert answers == [(200, hashlib.sha256(body_of(size)).hexdigest()) for size, _ in sizes]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_refused_body_is_told_why(front: Fronted, framing: str) -> None:
    """The gate's answer does not depend on the body."""
    answer = requests.post(
        front.url("/x"),
        data=body_of(2) if framing == "length" else pieces(body_of(2)),
        headers={"X-API-Key": "qk_wrong"},
        timeout=20,
    )
    assert answer.status_code == 401
    assert answer.json()["code"] == "sign_in"


def test_bodies_arrive_piece_by_piece(front: Fronted) -> None:
    target, sent, go_on = "/upload", 100_000, threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b"x" * sent
        assert go_on.wait(15)
        yield b"y"

    def received() -> bool:
        return any(
            entry.get("received", 0) == sent for entry in front.proxy.journal_of(target, "fast")
        )

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(
            requests.post, front.url(target), data=slowly(), headers=HEADERS, timeout=30
        )
        try:
            until(received, 10, "the first piece at the node")
        finally:
            go_on.set()
        assert answer.result().json()["size"] == sent + 1


def test_events_arrive_one_by_one(front: Fronted) -> None:
    """The node writes an event only when the client has read the one before."""
    node = f"http://127.0.0.1:{front.proxy.node_port('fast')}"
    with requests.post(
        front.url("/events?count=5"), headers=HEADERS, stream=True, timeout=10
    ) as answer:
        lines = answer.iter_lines(chunk_size=1)
        seen = []
        for line in lines:
            if line:
                seen.append(line.decode())
                requests.get(f"{node}/next", timeout=5)
    assert seen == [f"data: {number}" for number in range(5)]


def test_an_answer_without_a_type_arrives_piece_by_piece(front: Fronted) -> None:
    """As Ollama's lines of JSON do; not only text/event-stream is a stream."""
    with requests.get(
        front.url("/blob?size=300000000&chunked"), headers=HEADERS, stream=True, timeout=10
    ) as answer:
        assert answer.raw.read(10)
        left = [entry["left"] for entry in front.proxy.journal("fast") if "left" in entry]
        assert left[-1] > 0


def test_the_node_sees_that_a_client_has_gone(front: Fronted) -> None:
    target = f"/long-poll?seconds=50&{front.name}"
    with contextlib.suppress(requests.Timeout):
        requests.post(front.url(target), headers=HEADERS, timeout=0.5)

    def cancelled() -> bool:
        return [entry["end"] for entry in front.proxy.journal_of(target, "fast")] == ["cancelled"]

    until(cancelled, 10, "the end at the node")


def test_websockets(front: Fronted) -> None:
    async def talk(path: str, **headers: str) -> None:
        named = {"X-API-Key": KEY, **headers}
        address = f"ws://127.0.0.1:{front.port}{path}"
        async with connect(address, additional_headers=named, proxy=None, max_size=None) as socket:
            for message in ("hello 你好", b"x" * MB):
                await socket.send(message)
                assert await asyncio.wait_for(socket.recv(), 10) == message

    asyncio.run(talk("/ws"))


def test_a_refused_websocket_is_told_why(front: Fronted) -> None:
    with RawClient(front.port) as client:
        client.send(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        status, _, body = client.answer()
    assert status in (401, 403)
    assert json.loads(body)["code"] == "sign_in"


@pytest.mark.parametrize("token", ["h2c", "tls/1.3", "foo, websocket"])
def test_another_upgrade_is_ignored(front: Fronted, token: str) -> None:
    with RawClient(front.port) as client:
        head = (
            f"POST /up?{quote(token)} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
            f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {token}\r\nHTTP2-Settings: AAMAAABk\r\n"
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )
        client.send(head.encode())
        status, _, body = client.answer()
    assert (status, json.loads(body)["size"]) == (200, 5)


@pytest.mark.parametrize("port", ["", ":9999", None], ids=["no port", "mapped port", "own port"])
def test_own_pages_may_sign_in_and_wake_by_any_port(front: Fronted, port: str | None) -> None:
    """Where a router or container maps the port, nginx does not listen on what visitors write."""
    host = f"gpu.example{f':{front.port}' if port is None else port}"
    with requests.Session() as browser:
        browser.headers.update({"Host": host, "Origin": f"http://{host}"})
        login = browser.post(
            front.url("/_qwenctl/login"), {"password": PASSWORD}, allow_redirects=False, timeout=10
        )
        assert login.status_code == 303, login.text
        cookie = f"qwenctl_session={login.cookies['qwenctl_session']}"
        asked = {"Host": host, "Cookie": cookie}

        def status(path: str, origin: str, **more: str) -> int:
            headers = {**asked, "Origin": origin, **more}
            return requests.post(
                front.url(path), headers=headers, allow_redirects=False, timeout=10
            ).status_code

        wake = "/_qwenctl/api/wake?gpu=fast"
        own, other = f"http://{host}", "http://gpu.example:1"
        assert status(wake, own) == 202
        assert status(wake, "http://evil.example") == 403
        assert status(wake, other) == (202 if port == "" else 403)
        assert status("/own", own) == 200
        assert status("/own", "http://evil.example") == 403


def test_an_unknown_tier_is_told(front: Fronted) -> None:
    answer = post(front, "/x", b"{}", "length", X_Qwenctl_Tier="turbo")
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_tier")
    assert "fast" in answer.json()["detail"]


def test_a_large_header_of_an_answer_passes(front: Fronted) -> None:
    answer = requests.get(front.url("/large-header?size=30000"), headers=HEADERS, timeout=10)
    assert (answer.status_code, len(answer.headers["X-Large"])) == (200, 30000)


@pytest.mark.parametrize("name", FRONTS)
def test_an_unknown_host_is_told(name: str, tmp_path: Path) -> None:
    with fronted(name, tmp_path, gpu={"main": gpu(preset="generic")}) as made:
        made.proxy.store.pin("main", "pin:test", 3600.0, reason="test", actor="test")
        for target in ("/x", "/_qwenctl/api/status"):
            host = {"Host": "rebound.example"}
            answer = requests.get(made.url(target), headers=host, timeout=10)
            assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host")
