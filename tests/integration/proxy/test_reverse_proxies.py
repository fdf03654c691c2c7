"""The gate as a forward-auth endpoint: real servers in front of the node ask it, with the
configurations that docs/reverse-proxies.md gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

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


def fronted(
    name: str, folder: Path, gpus: dict[str, Any] | None = None, **settings: object
) -> Iterator[tuple[str, RunningProxy]]:
    """A proxy of ours, and that server in front of it."""
    program_of(name)
    gpus = gpus or {"main": gpu(preset="generic")}
    with running(folder / "proxy", gpu=gpus, access=password_access(), **settings) as proxy:
        with in_front(name, folder, proxy.port) as port:
            yield f"http://127.0.0.1:{port}", proxy


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunningProxy]]:
    yield from fronted("nginx", tmp_path_factory.mktemp("nginx"))


@pytest.fixture(scope="module")
def caddy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunningProxy]]:
    yield from fronted(
        "caddy", tmp_path_factory.mktemp("caddy"), proxy={"gate_headers": "x-forwarded"}
    )


@pytest.fixture
def proxy(nginx: tuple[str, RunningProxy]) -> RunningProxy:
    return nginx[1]


def test_behind_nginx(nginx: tuple[str, RunningProxy]) -> None:
    off_then_woken_then_forwarded(*nginx)


def test_behind_caddy(caddy: tuple[str, RunningProxy]) -> None:
    off_then_woken_then_forwarded(*caddy)


def off_then_woken_then_forwarded(front: str, proxy: RunningProxy) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    # Asleep: nobody without access gets further; with access, the proxy itself answers.
    assert requests.get(f"{front}/x", timeout=5).status_code == 401
    asleep = requests.get(f"{front}/x", headers=key, timeout=5)
    assert (asleep.status_code, asleep.json()["code"]) == (503, "not_ready")
    assert proxy.untouched()
    # A POST is handed to the proxy, which wakes and holds it.
    held = requests.post(f"{front}/x", data=b"12345", headers=key, timeout=20)
    assert (held.status_code, held.json()["size"]) == (200, 5)
    # On: the server in front talks to the node directly.
    proxy.wait_for("ready")
    direct = requests.post(f"{front}/y?a=1", data=b"123", headers=key, timeout=5).json()
    assert (direct["target"], direct["size"]) == ("/y?a=1", 3)
    names = {name.lower() for name, _ in direct["headers"]}
    assert "authorization" in names, "it went through the proxy, which takes our key out"
    assert requests.get(f"{front}/x", timeout=5).status_code == 401
    with requests.Session() as browser:
        browser.post(f"{front}/_qwenctl/login", data={"password": PASSWORD}, timeout=10)
        assert browser.get(f"{front}/z", timeout=5).json()["target"] == "/z"


def test_what_passes_the_gate_keeps_the_gpu_on(nginx: tuple[str, RunningProxy]) -> None:
    front, proxy = nginx
    proxy.wake()
    proxy.store.release("main", actor="test", only="request:key:ci")
    key = {"Authorization": f"Bearer {KEY}"}

    def leased() -> bool:
        return "request:key:ci" in {lease.name for lease in proxy.snapshot().leases}

    requests.get(f"{front}/quiet", headers=key, timeout=5)  # passive: no use
    requests.post(f"{front}/use", headers=key, timeout=5)
    until(leased, 3, "the lease")


TWO = ("mine", "theirs")
"""Two GPUs, each with a host of its own."""


def behind(name: str, folder: Path) -> Iterator[tuple[str, RunningProxy]]:
    """Two GPUs of two hosts, both on, behind a server that is trusted."""
    gpus = {name: gpu(preset="gradio", hosts=[f"{name}.localhost"]) for name in TWO}
    options = {
        "gate_headers": "x-forwarded" if name == "caddy" else "x-original",
        "trusted_proxies": ["127.0.0.1"],
    }
    for front, proxy in fronted(name, folder, gpus, proxy=options):
        for one in TWO:
            proxy.wake(one)
        yield front, proxy


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def two(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RunningProxy]]:
    yield from behind(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["nginx-tls", "caddy-tls"])
def passed_on(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RunningProxy]]:
    yield from behind(request.param, tmp_path_factory.mktemp(request.param))


def ask(front: str, target: str, more: str = "", method: str = "POST") -> tuple[int, bytes, str]:
    """A request of bytes that no library would send; status, body and headers of the answer."""
    length = "Content-Length: 0\r\n" if method == "POST" else ""
    with RawClient(int(front.rpartition(":")[2])) as client:
        head = f"{method} {target} HTTP/1.1\r\nHost: mine.localhost\r\nX-API-Key: {KEY}\r\n"
        client.send(f"{head}{length}{more}\r\n".encode())
        status, headers, body = client.answer()
    return status, body, str(headers)


def requests_at(proxy: RunningProxy, name: str) -> list[str]:
    """The targets that a node has been asked for, but for probes."""
    return [entry["target"] for entry in proxy.journal(name) if entry["target"] != "/ready"]


def lease_of(proxy: RunningProxy, name: str) -> bool:
    return "request:key:ci" in {lease.name for lease in proxy.snapshot(name).leases}


ODD = [
    "//gradio_api/queue/join",
    "/gradio_api//queue/join",
    "/x/../gradio_api/queue/join",
    "/./gradio_api/queue/join",
    "/_qwenctl/../gradio_api/queue/join",
    "/_qwenctl/%2e%2e/gradio_api/queue/join",
    "/_qwenctl%2f../gradio_api/queue/join",
    "/x/%2E%2E/gradio_api/queue/join",
    "/gradio_api/queue/join;x",
    "/gradio_api;x/queue/join",
    "/gradio_api\\queue/join",
    "/gradio_api%5cqueue/join",
    "/gradio_api/queue/join%00",
    "/gradio_api/queue/join%zz",
]


@pytest.mark.parametrize("path", ODD)
def test_no_other_spelling_reaches_the_node(two: tuple[str, RunningProxy], path: str) -> None:
    front, proxy = two
    before = requests_at(proxy, "mine")
    status, _, _ = ask(front, path)
    assert 400 <= status < 500
    assert requests_at(proxy, "mine") == before


@pytest.mark.parametrize(
    "path", ["/gradio_api/queue/join", "/GRADIO_API/queue/join", "/gradio_api%2Fqueue/join"]
)
def test_use_counts_however_it_is_written(two: tuple[str, RunningProxy], path: str) -> None:
    front, proxy = two
    proxy.store.release("mine", actor="test", only="request:key:ci")
    status, body, _ = ask(front, path)
    assert (status, json.loads(body)["target"]) == (200, path)
    until(lambda: lease_of(proxy, "mine"), 3, "the lease")


@pytest.mark.parametrize(
    "target", ["/gradio_api/file=%2Ftmp%2Fa%20b.png?x=//..;", "/gradio_api/file=https://x/a.png"]
)
def test_paths_of_files_pass(two: tuple[str, RunningProxy], target: str) -> None:
    status, body, _ = ask(two[0], target, method="GET")
    assert (status, json.loads(body)["target"]) == (200, target)


UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def test_other_sites_do_not_use_the_gpu(two: tuple[str, RunningProxy]) -> None:
    other_sites_do_not_use_the_gpu(*two)


def test_requests_of_other_sites_are_not_passed_on(passed_on: tuple[str, RunningProxy]) -> None:
    other_sites_do_not_use_the_gpu(*passed_on)


def other_sites_do_not_use_the_gpu(front: str, proxy: RunningProxy) -> None:
    port = int(front.rpartition(":")[2])
    with requests.Session() as browser:
        login = f"{front}/_qwenctl/login"
        host = f"mine.localhost:{port}"
        browser.post(login, {"password": PASSWORD}, headers={"Host": host}, allow_redirects=False)
        cookie = f"Cookie: qwenctl_session={browser.cookies['qwenctl_session']}\r\n"

    def status(method: str, path: str, origin: str, more: str) -> int:
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n{cookie}{more}\r\n"
        with RawClient(port) as client:
            client.send(head.encode())
            return client.head()[0]

    empty = "Content-Length: 0\r\n"
    assert status("POST", "/own", f"http://{host}", empty) == 200
    assert status("GET", "/ws", f"http://{host}", UPGRADE) == 101
    for origin in ("http://evil.example", "null", "http://theirs.localhost"):
        assert status("POST", "/forged", origin, empty) == 403
        assert status("GET", "/ws?forged", origin, UPGRADE) == 403
    assert not [target for target in requests_at(proxy, "mine") if "forged" in target]


FORGED = "".join(
    f"{name}: {value}\r\n"
    for name, value in {
        "X-Forwarded-Host": "theirs.localhost",
        "X-Forwarded-Uri": "/gradio_api/heartbeat/x",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-For": "192.0.2.66",
        "X-Original-URI": "/gradio_api/heartbeat/x",
        "X-Original-Method": "GET",
        "X-Original-Host": "theirs.localhost",
        "X-Host": "theirs.localhost",
        "Forwarded": "host=theirs.localhost;for=192.0.2.66",
        "X-Real-IP": "192.0.2.66",
        "X-Qwenctl-Node": "127.0.0.1:1",
    }.items()
)


def test_forged_headers_change_nothing(two: tuple[str, RunningProxy]) -> None:
    forged_headers_change_nothing(*two)


def test_forged_headers_are_not_passed_on(passed_on: tuple[str, RunningProxy]) -> None:
    forged_headers_change_nothing(*passed_on)


def forged_headers_change_nothing(front: str, proxy: RunningProxy) -> None:
    for name in TWO:
        proxy.store.release(name, actor="test", only="request:key:ci")
    before = requests_at(proxy, "theirs")
    status, body, _ = ask(front, "/gradio_api/queue/join", FORGED)
    assert (status, json.loads(body)["target"]) == (200, "/gradio_api/queue/join")
    unread = {"x-qwenctl-node", "x-host", "x-original-host"}
    told = [pair for pair in json.loads(body)["headers"] if pair[0].lower() not in unread]
    assert "192.0.2.66" not in str(told)
    assert "theirs" not in str(told)
    until(lambda: lease_of(proxy, "mine"), 3, "the lease")
    assert not lease_of(proxy, "theirs")
    assert requests_at(proxy, "theirs") == before
    _, body, _ = ask(front, "/_qwenctl/api/status", FORGED, method="GET")
    assert json.loads(body)["gpu"] == "mine"


def test_forged_headers_of_a_refused_visitor(two: tuple[str, RunningProxy]) -> None:
    front, _ = two
    with RawClient(int(front.rpartition(":")[2])) as client:
        client.send(f"GET /x HTTP/1.1\r\nHost: mine.localhost\r\n{FORGED}\r\n".encode())
        assert client.answer()[0] == 401


@pytest.mark.parametrize("more", ["", FORGED], ids=["plain", "forged"])
@pytest.mark.parametrize(
    "path",
    ["/_qwenctl/gate", "/_qwenctl//gate", "/_qwenctl%2fgate", "/x/../_qwenctl/gate", "/gate"],
)
def test_the_gate_is_not_for_visitors(two: tuple[str, RunningProxy], path: str, more: str) -> None:
    the_gate_is_not_for_visitors(*two, path, more)


@pytest.mark.parametrize("more", ["", FORGED], ids=["plain", "forged"])
def test_the_gate_is_not_passed_on(passed_on: tuple[str, RunningProxy], more: str) -> None:
    the_gate_is_not_for_visitors(*passed_on, "/_qwenctl/gate", more)


def the_gate_is_not_for_visitors(front: str, proxy: RunningProxy, path: str, more: str) -> None:
    """It would tell them the node's address."""
    status, body, headers = ask(front, path, more.replace("127.0.0.1:1", "x"), method="GET")
    assert "x-qwenctl-node" not in headers.lower()
    assert str(proxy.node_port("mine")) not in headers
    assert status in (200, 400, 404)
    if status == 200:
        assert path == "/gate"  # a path like any other
        assert json.loads(body)["target"] == path


def test_answers_do_not_tell_the_nodes_address(two: tuple[str, RunningProxy]) -> None:
    front, proxy = two
    _, _, headers = ask(front, "/x", method="GET")
    assert str(proxy.node_port("mine")) not in headers


def gate(proxy: RunningProxy, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(proxy.url("/_qwenctl/gate"), headers=named, timeout=5)


def test_the_gate_itself(proxy: RunningProxy) -> None:
    proxy.wake()
    allowed = gate(proxy, X_API_Key=KEY, X_Original_URI="/a%20b?x=1", X_Original_Method="POST")
    assert (allowed.status_code, allowed.content) == (204, b"")
    assert allowed.headers["x-qwenctl-node"] == f"127.0.0.1:{proxy.node_port()}"
    forwarded = gate(proxy, X_API_Key=KEY, X_Forwarded_Uri="/a", X_Forwarded_Method="GET")
    assert forwarded.status_code == 204  # as Caddy and Traefik ask
    assert gate(proxy, X_API_Key="qk_wrong").status_code == 401
    assert gate(proxy, X_API_Key=KEY, X_Original_URI="\xff").status_code == 204


def test_the_gate_does_not_wake(proxy: RunningProxy) -> None:
    proxy.store.block("main", "maintenance:test", None, reason="", actor="test", force_stop=True)
    proxy.wait_for("off")
    proxy.store.unblock("main", actor="test")
    proxy.store.release("main", actor="test")
    refused = gate(proxy, X_API_Key=KEY, X_Original_URI="/x", X_Original_Method="POST")
    assert (refused.status_code, refused.json()["code"]) == (403, "not_ready")
    assert not proxy.snapshot().leases
