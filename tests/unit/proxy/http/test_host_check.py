"""Host names: our own alone without access control, and none that contradict each other."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from proxy.http.middleware import HostCheck
from proxy.http.request import Message, Networks, Receive, Scope, Send, networks
from qwenctl.config.deployment import Config

GPUS = {"a": {"hosts": ["a.example"]}, "b": {"hosts": ["b.example"]}, "c": {}}
BROWSER = {"origin": "http://x"}


def status(
    headers: dict[str, str], proxy: dict[str, Any], mode: str = "none", trusted: Networks = ()
) -> int:
    """What the check answers; 200 if it passes the request on."""
    access = {"mode": mode, "password_hash": "$argon2id$x"}
    config = Config.model_validate({"proxy": proxy, "access": access, "gpu": GPUS})
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    asyncio.run(HostCheck(app, config, trusted)(scope, receive, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "loopback", "anonymous"),
    [
        ("127.0.0.1:8080", 200, 200),
        ("localhost", 200, 200),
        ("[::1]:80", 200, 200),
        ("a.example", 200, 200),
        ("public.example", 200, 200),
        ("192.168.1.5:8080", 421, 200),
        ("[2001:db8::5]:80", 421, 200),
        ("gpubox", 421, 200),
        ("evil.example", 421, 421),
        ("127.0.0.1.evil.example", 421, 421),
        ("evil.example.", 421, 421),
    ],
)
def test_names_without_access_control(host: str, loopback: int, anonymous: int) -> None:
    public = {"public_url": "https://public.example"}
    assert status({"host": host, **BROWSER}, public) == loopback
    lan = {**public, "allow_anonymous": True, "listen": "0.0.0.0:8080"}
    assert status({"host": host, **BROWSER}, lan) == anonymous
    assert status({"host": host}, lan) == 200  # no browser, so no site can be behind it
    assert status({"host": host, **BROWSER}, {}, mode="password") == 200


def test_this_machine_by_its_name() -> None:
    lan = {"allow_anonymous": True, "listen": "0.0.0.0:8080"}
    assert status({"host": socket.gethostname(), **BROWSER}, lan) == 200


@pytest.mark.parametrize(
    ("host", "forwarded", "believed", "answer"),
    [
        ("a.example", "b.example", True, 400),
        ("a.example:80", "B.example:81", True, 400),
        ("a.example", "other.example", True, 400),
        ("a.example", "a.example", True, 200),
        ("inner:8080", "b.example", True, 200),  # it does not pass Host on
        ("a.example", "b.example", False, 200),  # it is not believed at all
        ("a.example", "b.example, a.example", True, 200),
        ("a.example", "a.example, b.example", True, 400),
        ("inner", "a/b", True, 400),
        ("inner", "a b", True, 400),
    ],
)
def test_a_forged_forwarded_host(host: str, forwarded: str, believed: bool, answer: int) -> None:
    headers = {"host": host, "x-forwarded-host": forwarded}
    trusted = networks(["127.0.0.1"]) if believed else ()
    assert status(headers, {}, "password", trusted) == answer
