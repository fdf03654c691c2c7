"""A real vLLM behind the proxy: its whole day, from the first question to sleep.

``make test-real`` installs vLLM and runs this. The tests are steps of one run, in order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from qwenctl.core.phase import Phase
from tests.integration.proxy.running import RunningProxy, running
from tests.support.net import free_port
from tests.support.waiting import until

DIRECTORY = os.environ.get("REAL_VLLM", "")
SCRIPT = Path(__file__).with_name("vllm.sh")

pytestmark = [
    pytest.mark.skipif(
        not DIRECTORY,
        reason="this machine cannot run vLLM until `make test-real` installs it (3.5 GB)",
    ),
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("vllm"),
]

IDLE = 6.0
DRAIN = 4.0
LOAD = 800.0
"""How long vLLM may take to load: 40 s on two idle cores, minutes on busy ones."""

SLACK = 15.0
"""For the node's last heartbeats, which may report running work, and for a busy machine."""

HELLO: Any = [{"role": "user", "content": "hello"}]


def service(port: int) -> dict[str, Any]:
    return {
        "name": "vllm",
        "command": ["bash", str(SCRIPT), DIRECTORY, "serve", str(port)],
        "port": port,
        "stop_timeout": 30,
        "readiness": {"path": "/health", "interval": 1, "inference": "openai"},
        "activity": {
            "path": "/metrics",
            "metrics": ["vllm:num_requests_running", "vllm:num_requests_waiting"],
        },
    }


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    table = {
        "preset": "openai",
        "idle_timeout": IDLE,
        "boot_estimate": 60,
        "local": {"boot_seconds": 0.1, "stop_seconds": 0.1},
        "timing": {"heartbeat": 1, "drain": DRAIN, "load": LOAD},
        "service": [service(free_port())],
    }
    with running(
        tmp_path_factory.mktemp("vllm"), gpu={"main": table}, proxy={"hold": LOAD}
    ) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def client(proxy: RunningProxy) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.url("/v1"), api_key="none", max_retries=0, timeout=LOAD)


def running_requests(proxy: RunningProxy) -> float:
    """How many requests vLLM works on, by its own metrics."""
    text = requests.get(f"http://127.0.0.1:{proxy.node_port()}/metrics", timeout=30).text
    rows = (line for line in text.splitlines() if line.startswith("vllm:num_requests_running"))
    return sum(float(row.rpartition(" ")[2]) for row in rows)


def stream(client: openai.OpenAI, tokens: int) -> Any:
    return client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )


def test_a_cold_question_is_held_and_answered(proxy: RunningProxy, client: openai.OpenAI) -> None:
    assert proxy.untouched()
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert proxy.snapshot().phase.value == "ready"


def test_a_stream_longer_than_the_idle_timeout_is_whole(
    proxy: RunningProxy, client: openai.OpenAI
) -> None:
    tokens, began, arrivals, usage = 1500, time.monotonic(), [], None
    for chunk in stream(client, tokens):
        arrivals.append(time.monotonic() - began)
        usage = chunk.usage or usage
    assert usage is not None
    assert usage.completion_tokens == tokens
    assert len(arrivals) > tokens / 4  # in pieces, as they are made
    assert arrivals[-1] - arrivals[0] > 5 * arrivals[0]
    assert proxy.snapshot().phase.serves


def test_errors_of_vllm_are_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.chat.completions.create(model="gpt-4o", messages=HELLO)


def test_its_models(proxy: RunningProxy, client: openai.OpenAI) -> None:
    answer = requests.get(proxy.url("/v1/models"), timeout=30)
    assert "x-qwenctl-models" not in answer.headers
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_after_an_abort_in_the_middle_it_is_off_in_time(
    proxy: RunningProxy, client: openai.OpenAI
) -> None:
    answer = stream(client, 1900)
    for number, _ in enumerate(answer):
        if number == 20:
            break
    assert running_requests(proxy) == 1
    answer.close()
    aborted = time.time()  # the store's clock, too
    until(lambda: running_requests(proxy) == 0, 15, "the end of vLLM's work")
    until(lambda: proxy.snapshot().phase.value == "off", 120, "the sleep")
    moves = {event.to: event.time for event in proxy.store.events("main", 100)}
    assert IDLE - 1 < moves[Phase.DRAINING] - aborted < IDLE + SLACK
    assert moves[Phase.STOPPING] - moves[Phase.DRAINING] < DRAIN + SLACK
    with pytest.raises(requests.ConnectionError):
        running_requests(proxy)


def test_its_models_while_it_sleeps(proxy: RunningProxy, client: openai.OpenAI) -> None:
    began = time.monotonic()
    [model] = client.models.list()
    assert (model.id, model.owned_by) == ("tiny", "vllm")
    assert client.models.retrieve("tiny").id == "tiny"
    assert time.monotonic() - began < 15
    assert proxy.snapshot().phase.value == "off"
    assert not proxy.snapshot().leases
