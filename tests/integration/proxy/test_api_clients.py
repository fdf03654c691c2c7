"""What the official OpenAI SDK says of our answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from proxy.app import Proxy
from proxy.http.request import Message
from tests.integration.proxy.parts import into, nothing_more, scope
from tests.integration.proxy.running import (
    KEY,
    RawClient,
    RunningProxy,
    gpu,
    password_access,
    running,
)

MESSAGES: Any = [{"role": "user", "content": "hello"}]
NAMES = ("blocked", "shut", "never", "denied")


@pytest.fixture(scope="module")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """One proxy with a sleeping GPU for each test."""
    gpus = {name: gpu(hosts=[f"{name}.localhost"], preset="openai") for name in NAMES}
    gpus["never"].update(wake_on="never", boot_estimate=60)
    gpus["denied"]["local"] = {"fail": "denied"}
    with running(tmp_path_factory.mktemp("asleep"), gpu=gpus) as proxy:
        yield proxy


def sdk(proxy: RunningProxy, name: str, key: str = "none", retries: int = 0) -> openai.OpenAI:
    headers = {"Host": f"{name}.localhost"}
    url = proxy.url("/v1")
    return openai.OpenAI(
        base_url=url, api_key=key, default_headers=headers, max_retries=retries, timeout=20
    )


def refused(client: openai.OpenAI) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES)
    return caught.value


def test_the_sdk_says_who_blocked_it_and_until_when(asleep: RunningProxy) -> None:
    asleep.store.block("blocked", "maintenance:eve", 5400, reason="new disk", actor="eve")
    error = refused(sdk(asleep, "blocked"))
    until = time.strftime("%H:%M", time.localtime(60 * -(-(time.time() + 5400) // 60)))
    assert (error.status_code, error.code, error.type) == (503, "blocked", "server_error")
    assert isinstance(error.body, dict)
    said = error.body["message"]  # what the SDKs of other languages print
    assert said.startswith("the GPU 'blocked' is blocked until ")
    assert said.endswith(" by maintenance:eve: new disk")
    assert until in said or time.strftime("%H:%M") in said  # a minute has ended meanwhile
    wake = requests.post(asleep.url("/_qwenctl/api/wake?gpu=blocked"), timeout=5).json()
    assert wake["error"]["message"] == wake["detail"] == said


def test_a_block_without_an_end_says_so(asleep: RunningProxy) -> None:
    asleep.store.block("shut", "maintenance:eve", None, reason="sold", actor="eve")
    error = refused(sdk(asleep, "shut"))
    assert "it stays off until somebody unblocks it" in str(error)
    assert "retry-after" not in error.response.headers


def test_the_sdk_says_why_it_failed_to_start(asleep: RunningProxy) -> None:
    error = refused(sdk(asleep, "denied"))
    assert (error.status_code, error.code) == (503, "denied")
    assert "has failed to start" in str(error)
    assert "retry-after" not in error.response.headers  # a person must act


def test_retries_end_at_once_where_waiting_does_not_help(asleep: RunningProxy) -> None:
    began = time.monotonic()
    error = refused(sdk(asleep, "never", retries=2))
    assert "it is woken from the command line" in str(error)
    assert time.monotonic() - began < 30  # not twice a minute
    assert asleep.untouched("never")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/responses/resp_1", "/health", "/x"])
def test_what_wakes_nothing_asks_nobody_to_come_again(asleep: RunningProxy, path: str) -> None:
    answer = requests.get(asleep.url(path), headers={"Host": "never.localhost"}, timeout=5)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "retry-after" not in answer.headers


def test_the_sdk_says_that_the_key_is_wrong(tmp_path: Path) -> None:
    with running(tmp_path, access=password_access()) as proxy:
        with pytest.raises(openai.AuthenticationError, match="send an API key as") as caught:
            sdk(proxy, "main", key="sk-wrong").models.list()
        assert caught.value.type == "authentication_error"
        status = requests.get(proxy.url("/_qwenctl/api/status"), timeout=5)
        assert status.status_code == 401
        assert status.headers["www-authenticate"].startswith("Bearer")
        assert status.json()["error"]["code"] == "sign_in"
        headers = {"X-API-Key": KEY, "X-Qwenctl-Tier": "best"}
        unknown = requests.get(proxy.url("/_qwenctl/api/status?gpu=x"), headers=headers, timeout=5)
        assert unknown.json()["error"]["message"] == "no such GPU is configured"


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: unknown.example\r\n\r\n",
        (
            b"GET /v1/realtime HTTP/1.1\r\nHost: never.localhost\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    ],
    ids=["no HTTP", "two hosts", "long target", "large head", "unknown host", "WebSocket"],
)
def test_refusals_of_every_kind_have_the_error(asleep: RunningProxy, sent: bytes) -> None:
    with RawClient(asleep.port) as client:
        client.send(sent)
        status, _, body = client.answer()
    problem = json.loads(body)
    assert status == problem["status"]
    assert problem["error"]["message"] == problem["detail"]
    assert problem["error"]["code"] == problem["code"]


def test_a_mistake_of_ours_is_a_problem_with_a_reference(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = object.__new__(Proxy)

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    class Nobody:
        trusted = ()

    made._asgi, made.services = fail, Nobody()  # type: ignore[assignment]
    sent: list[Message] = []
    asyncio.run(made(scope(), nothing_more, into(sent)))
    problem = json.loads(sent[1]["body"])
    assert (sent[0]["status"], problem["error"]["type"]) == (500, "server_error")
    assert problem["detail"].rpartition(" ")[2].strip(")") in caplog.text
