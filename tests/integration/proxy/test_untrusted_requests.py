"""Requests with forged targets, paths and headers, sent to a whole proxy."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.integration.proxy.running import (
    RawClient,
    RunningProxy,
)


@pytest.fixture
def victim() -> Iterator[socket.socket]:
    """A server that must never hear of us."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        yield server


def heard_nothing(victim: socket.socket) -> bool:
    try:
        victim.accept()
    except TimeoutError:
        return True
    return False


def raw(proxy: RunningProxy, request: str) -> tuple[int, dict[str, str], bytes]:
    with RawClient(proxy.port) as client:
        client.send(request.replace("\n", "\r\n").encode())
        return client.answer()


UPGRADE = (
    "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
)


@pytest.mark.parametrize("more", ["", UPGRADE], ids=["http", "websocket"])
def test_a_forged_target(on: RunningProxy, victim: socket.socket, more: str) -> None:
    port = victim.getsockname()[1]
    status, _, _ = raw(on, f"GET *@127.0.0.1:{port}/x HTTP/1.1\nHost: localhost\n{more}\n")
    assert status == 400
    assert heard_nothing(victim)


def test_options_of_the_server_itself(on: RunningProxy) -> None:
    assert raw(on, "OPTIONS * HTTP/1.1\nHost: localhost\n\n")[0] == 204
    assert "Traceback" not in on.log


@pytest.mark.parametrize("more", ["", UPGRADE], ids=["http", "websocket"])
@pytest.mark.parametrize(
    ("target", "hosts"),
    [
        ("http://other/x", "Host: localhost\n"),
        ("http://localhost@other/x", "Host: localhost\n"),
        ("/x", ""),
        ("/x", "Host: localhost\nHost: localhost\n"),
        ("/x", "Host: localhost\nX-A: b\nhost: other\n"),
        ("/x", "Host: localhost, other\n"),
        ("/x", "Host: localhost@other\n"),
    ],
)
def test_a_request_names_its_host_once(
    on: RunningProxy, target: str, hosts: str, more: str
) -> None:
    before = len(on.journal_of("/x"))
    status, _, body = raw(on, f"GET {target} HTTP/1.1\n{hosts}{more}\n")
    assert (status, json.loads(body)["code"]) == (400, "bad_host")
    assert len(on.journal_of("/x")) == before


def test_a_target_in_absolute_form(on: RunningProxy) -> None:
    status, _, body = raw(on, "GET http://localhost/x?y HTTP/1.1\nHost: localhost\n\n")
    assert (status, json.loads(body)["target"]) == (200, "/x?y")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_page_of_another_site_does_not_use_the_gpu(
    on: RunningProxy, headers: dict[str, str]
) -> None:
    head = "Host: localhost\n" + "".join(f"{name}: {value}\n" for name, value in headers.items())
    for forged in (
        f"POST /forged HTTP/1.1\n{head}Content-Length: 0\n\n",
        f"GET /forged HTTP/1.1\n{head}{UPGRADE}\n",
    ):
        status, _, body = raw(on, forged)
        assert (status, json.loads(body)["code"]) == (403, "cross_site")
    assert not on.journal_of("/forged")
    assert raw(on, f"GET /image HTTP/1.1\n{head}\n")[0] == 200


def test_pages_of_this_site_and_programs_use_the_gpu(on: RunningProxy) -> None:
    port = on.port
    for head in (
        "Host: localhost\n",
        "Host: localhost\nOrigin: http://localhost\n",
        f"Host: 127.0.0.1:{port}\nOrigin: http://127.0.0.1:{port}\n",
        "Host: localhost\nOrigin: null\nSec-Fetch-Site: same-origin\n",
        "Host: localhost\nOrigin: https://localhost\n",  # behind a server that ends TLS
    ):
        assert raw(on, f"POST /own HTTP/1.1\n{head}Content-Length: 0\n\n")[0] == 200
        with RawClient(on.port) as client:
            client.send(f"GET /ws HTTP/1.1\n{head}{UPGRADE}\n".replace("\n", "\r\n").encode())
            assert client.head()[0] == 101


def handshake(proxy: RunningProxy, path: str) -> int:
    """The status of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{proxy.port}{path}", proxy=None)
    return caught.value.response.status_code


def test_a_handshake_is_not_redirected(on: RunningProxy, victim: socket.socket) -> None:
    port = victim.getsockname()[1]
    assert handshake(on, f"/redirect?to=http://127.0.0.1:{port}/x") >= 400
    assert heard_nothing(victim)


def test_a_plain_answer_is_no_handshake(on: RunningProxy) -> None:
    assert handshake(on, "/status?code=200") == 502


@pytest.mark.parametrize("path", ["/admin", "//admin", "///admin/", "/x/%2e%2e/admin", "/./admin"])
def test_a_refusal_however_the_path_is_written(on: RunningProxy, path: str) -> None:
    assert raw(on, f"GET {path} HTTP/1.1\nHost: localhost\n\n")[0] == 403
    assert not [entry for entry in on.journal() if "admin" in entry["target"]]


@pytest.mark.parametrize("path", ["/odd%00", "/odd%0d%0a", "/odd%zz", "/%/odd"])
@pytest.mark.parametrize("more", ["", UPGRADE], ids=["http", "websocket"])
def test_what_is_no_path(on: RunningProxy, path: str, more: str) -> None:
    status, _, body = raw(on, f"GET {path} HTTP/1.1\nHost: localhost\n{more}\n")
    assert (status, json.loads(body)["code"]) == (400, "ambiguous_path")
    assert not [entry for entry in on.journal() if "odd" in entry["target"]]


@pytest.mark.parametrize(
    "target", ["/a//b;c?x=//../%2e%2e%zz;", "/file=%2Ftmp%5Cx%25.png", "/file=https://x/y", "/FILE"]
)
def test_what_applications_use_is_forwarded_as_it_is(on: RunningProxy, target: str) -> None:
    status, _, body = raw(on, f"GET {target} HTTP/1.1\nHost: localhost\n\n")
    assert (status, json.loads(body)["target"]) == (200, target)


def test_what_reaches_the_node(on: RunningProxy) -> None:
    head = "Host: localhost\nConnection: host, close\nX_Forwarded_For: 6.6.6.6\nX-Real-IP: 6.6.6.6"
    status, _, body = raw(on, f"POST /up HTTP/1.1\n{head}\nContent-Length: 3\n\nabc")
    assert status == 200
    echo = json.loads(body)
    got = {name.lower(): value for name, value in echo["headers"]}
    assert echo["size"] == 3
    assert "content-type" not in got
    assert got["host"] == "localhost"
    assert "6.6.6.6" not in got.values()
    assert got["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/_qwenctl/", "/_qwenctl/login"])
def test_a_next_that_is_no_address(on: RunningProxy, path: str) -> None:
    answer = requests.get(
        on.url(f"{path}?next=//["),
        headers={"Accept": "text/html"},
        allow_redirects=False,
        timeout=5,
    )
    assert answer.status_code < 500
    assert "//[" not in answer.text
