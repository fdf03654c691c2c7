"""The sites that may use the GPU from a browser, and what their browsers are told."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from proxy.http.cors import Cors, CorsHeaders, is_preflight
from proxy.http.request import Message, Receive, Scope, Send
from qwenctl.config.deployment import Config
from tests.integration.proxy.parts import into, nothing_more, scope
from tests.unit.proxy.made import request

CHAT = "https://chat.example"
ASKED = {"Origin": CHAT, "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    ("method", "headers", "is_one"),
    [
        ("OPTIONS", ASKED, True),
        ("OPTIONS", {**ASKED, "Content-Length": "0"}, True),
        ("OPTIONS", {**ASKED, "Content-Length": "2"}, False),
        ("OPTIONS", {**ASKED, "Transfer-Encoding": "chunked"}, False),
        ("OPTIONS", {"Origin": CHAT}, False),
        ("OPTIONS", {"Access-Control-Request-Method": "POST"}, False),
        ("POST", ASKED, False),
    ],
)
def test_what_a_preflight_is(method: str, headers: dict[str, str], is_one: bool) -> None:
    assert is_preflight(request(method, "/x", headers)) is is_one


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://Chat.Example/", CHAT),
        ("https://chat.example:443", CHAT),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("https://münchen.example", "https://xn--mnchen-3ya.example"),
        ("tauri://localhost", "tauri://localhost"),
        ("*", "*"),
    ],
)
def test_sites_are_kept_as_browsers_name_them(written: str, kept: str) -> None:
    config = Config.model_validate({"proxy": {"cors_origins": [written]}})
    assert config.proxy.cors_origins == (kept,)


@pytest.mark.parametrize(
    "written",
    [
        "null",
        "chat.example",
        "https://",
        f"{CHAT}/app",
        "https://*.example",
        "https://a@b",
        "",
        ":",
    ],
)
def test_what_is_no_site_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValidationError, match=r"such as https://chat\.example\.com"):
        Config.model_validate({"proxy": {"cors_origins": [written]}})


def answered(origins: list[str], headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer of a node that lets everybody in."""

    async def node(_scope: Scope, _receive: Receive, send: Send) -> None:
        theirs = [
            (b"access-control-allow-origin", b"*"),
            (b"Access-Control-Allow-Credentials", b"true"),
            (b"vary", b"Accept"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": theirs})

    sent: list[Message] = []
    app = CorsHeaders(node, Cors(origins), ())
    asyncio.run(app(scope("GET", headers), nothing_more, into(sent)))
    return list(sent[0]["headers"])


@pytest.mark.parametrize(
    ("origins", "origin", "allowed", "credentials"),
    [
        ([CHAT], CHAT, CHAT, True),
        ([CHAT], "https://evil.example", None, False),
        ([CHAT], "null", None, False),
        ([CHAT], "", None, False),
        (["*"], "https://evil.example", "*", False),
        (["*"], "*", "*", False),
        (["*", CHAT], CHAT, CHAT, True),
        (["*", CHAT], "https://evil.example", "*", False),
    ],
)
def test_an_answer_names_one_site_and_never_everybody_with_credentials(
    origins: list[str], origin: str, allowed: str | None, credentials: bool
) -> None:
    headers = answered(origins, {"Origin": origin} if origin else {})
    values = [value.decode() for name, value in headers if name == b"access-control-allow-origin"]
    assert values == ([allowed] if allowed else [])
    assert ("access-control-allow-credentials" in str(headers).lower()) is credentials
    assert [value for name, value in headers if name == b"vary"] == [b"Accept", b"Origin"]


def test_a_proxy_in_a_private_network_may_be_used_from_outside() -> None:
    cors, sent = Cors([CHAT]), list[Message]()
    asked = request("OPTIONS", "/x", {**ASKED, "Access-Control-Request-Private-Network": "true"})
    cors.note(asked)
    asyncio.run(cors.answer(asked, into(sent)))
    assert dict(sent[0]["headers"])[b"access-control-allow-private-network"] == b"true"
