"""Held streaming requests that ask for progress, and what a failed start makes of held requests."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.integration.proxy.running import RawClient, RunningProxy, gpu, running

CHAT = "/openai/v1/chat/completions"
PREFER = {"Prefer": "progress"}
FULL = {"fail": "no_capacity", "boot_seconds": 0.05}
SOON = 2.5
"""How long a GPU takes to be ready, in seconds."""

NAMES = ("streams", "plain", "lines", "sdk", "missing", "dies", "upload", "quick", "full", "fails")


@pytest.fixture(scope="module")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """One proxy with a sleeping GPU for each test."""
    slow = {"boot_seconds": SOON, "stop_seconds": 0.05}
    gpus = {
        name: gpu(hosts=[f"{name}.localhost"], preset="openai", boot_estimate=20, local=slow)
        for name in NAMES
    }
    gpus["quick"]["local"] = {"boot_seconds": 0.05}
    gpus["full"]["local"] = gpus["fails"]["local"] = FULL
    gpus["fails"]["hold_on_failure"] = "fail"
    with running(tmp_path_factory.mktemp("asleep"), gpu=gpus, proxy={"hold": 15}) as proxy:
        yield proxy


def ask(
    proxy: RunningProxy, name: str, headers: dict[str, str], path: str = CHAT, **body: Any
) -> requests.Response:
    return requests.post(
        proxy.url(path),
        headers={"Host": f"{name}.localhost", **headers},
        json={"model": "qwen", "messages": [], **body},
        stream=True,
        timeout=30,
    )


def comments(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line.startswith(":")]
    return [json.loads(line[1:]) for line in lines]


def events(text: str) -> list[str]:
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


def test_a_streaming_request_that_asks_hears_how_far_it_is(asleep: RunningProxy) -> None:
    began = time.monotonic()
    answer = ask(asleep, "streams", PREFER, stream=True)
    assert time.monotonic() - began < SOON  # the status comes before the node is there
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["preference-applied"] == "progress"
    assert answer.headers["cache-control"] == "no-store"
    said = comments(answer.text)
    assert said[0]["phase"] in ("starting", "booting", "loading")
    assert 0 <= said[0]["percent"] <= said[-1]["percent"] < 100
    assert said[0]["eta_seconds"] > 0
    last = events(answer.text)
    assert last[-1] == "[DONE]"
    words = [json.loads(event)["choices"][0]["delta"]["content"] for event in last[:-1]]
    assert words == ["hel", "lo"]


def test_without_being_asked_the_answer_keeps_its_own_status(asleep: RunningProxy) -> None:
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(ask, asleep, "plain", headers, model=model, stream=stream)
            for headers, model, stream in (
                ({}, "missing", True),  # a stream that has not asked
                (PREFER, "missing", False),  # no stream
                ({"Accept": "text/event-stream"}, "missing", True),
            )
        ]
        for answer in (one.result() for one in asked):
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "no such model"
            assert "preference-applied" not in answer.headers


def test_a_client_of_ollama_gets_no_events(asleep: RunningProxy) -> None:
    answer = ask(asleep, "lines", PREFER, "/api/chat", stream=True)
    assert answer.json()["target"] == "/api/chat"
    assert "preference-applied" not in answer.headers


def test_a_short_wait_leaves_the_status_alone(asleep: RunningProxy) -> None:
    ask(asleep, "quick", {}).close()
    answer = ask(asleep, "quick", PREFER, stream=True, model="missing")
    assert answer.status_code == 404
    assert "preference-applied" not in answer.headers


def test_a_large_body_stays_unread_while_progress_is_told(asleep: RunningProxy) -> None:
    size = 3 << 20
    with RawClient(asleep.port, timeout=20) as client:
        client.send(
            f"POST /v1/x HTTP/1.1\r\nHost: upload.localhost\r\nContent-Length: {size}\r\n"
            "Accept: text/event-stream\r\nPrefer: wait=9; x, Progress\r\n"
            "Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        status, headers = client.head()  # no "100 Continue": the body is not asked for
        assert (status, dict(headers)["preference-applied"]) == (200, "progress")
        assert not asleep.snapshot("upload").phase.serves
        client.send(b"x" * size)
        text = client.file.read(1) + client.file.readline()
        while b"data: " not in text:
            text += client.file.readline()
        assert json.loads(text.split(b"data: ")[1])["size"] == size


# The official SDK


def sdk(proxy: RunningProxy, name: str) -> Any:
    openai = pytest.importorskip("openai")
    headers = {"Host": f"{name}.localhost", **PREFER}
    url = proxy.url("/openai/v1")
    return openai.OpenAI(base_url=url, api_key="none", default_headers=headers, max_retries=0)


def test_the_openai_sdk_ignores_the_comments(asleep: RunningProxy) -> None:
    stream = sdk(asleep, "sdk").chat.completions.create(model="q", messages=[], stream=True)
    assert stream.response.headers["preference-applied"] == "progress"
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == "hello"


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("missing", "no such model", "404"),
        ("dies", "the node broke the connection before it answered", "upstream_died"),
    ],
)
def test_the_openai_sdk_raises_the_error(
    asleep: RunningProxy, name: str, message: str, code: str
) -> None:
    openai = pytest.importorskip("openai")
    stream = sdk(asleep, name).chat.completions.create(model=name, messages=[], stream=True)
    assert stream.response.status_code == 200
    with pytest.raises(openai.APIError, match=message) as raised:
        list(stream)
    assert str(raised.value.code) == code


# A start that fails


def test_no_capacity_is_told_while_a_request_waits_on(asleep: RunningProxy) -> None:
    with ask(asleep, "full", PREFER, stream=True) as answer:
        lines = answer.iter_lines(decode_unicode=True)
        said = next(told for line in lines for told in comments(line) if "failure" in told)
    assert said["phase"] == "failed"
    assert (said["percent"], said["eta_seconds"]) == (None, None)
    assert said["failure"]["code"] == "no_capacity"
    assert said["failure"]["retry_in_seconds"] > 0


def test_no_capacity_ends_the_wait_where_the_settings_say_so(asleep: RunningProxy) -> None:
    began = time.monotonic()
    answer = ask(asleep, "fails", {}, stream=True)
    assert time.monotonic() - began < 8
    assert answer.status_code == 503
    assert answer.json()["code"] == "no_capacity"
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert asleep.snapshot("fails").wanted  # it is tried again


def test_the_log_has_no_traceback(asleep: RunningProxy) -> None:
    assert "Traceback" not in asleep.log
    assert "ERROR" not in asleep.log
