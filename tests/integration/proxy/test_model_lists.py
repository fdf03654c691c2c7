"""``GET /v1/models`` while the GPU sleeps: answered at once, from what is known, without waking."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.integration.proxy.running import KEY, RunningProxy, gpu, password_access, running
from tests.support.waiting import until

KEYED = {"Authorization": f"Bearer {KEY}"}


def serving(*models: str, **settings: Any) -> dict[str, Any]:
    table = gpu(preset="openai", **settings)
    table["service"][0]["command"] += models
    return table


def listed(
    proxy: RunningProxy, host: str = "localhost", path: str = "/v1/models", **headers: str
) -> requests.Response:
    headers = {"Host": host, **KEYED, **headers}
    return requests.get(proxy.url(path), headers=headers, timeout=10)


def names(answer: requests.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [entry["id"] for entry in answer.json()["data"]]


def sleep(proxy: RunningProxy, name: str = "main") -> None:
    """Have the GPU off."""
    proxy.store.release(name, actor="test")
    until(lambda: proxy.snapshot(name).phase.value == "off", 20, "the sleep")
    until(lambda: not proxy.forwards(name), 5, "the proxy's knowledge of it")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """Access control, and a GPU for each case."""
    gpus = {
        "named": serving(models=["qwen-8b", "Qwen/Qwen3-*"], hosts=["named.localhost"]),
        "unknown": serving(hosts=["unknown.localhost"]),
        "small": serving(
            "tiny", "qwen-4b", models=["qwen-4b"], tier="speed", hosts=["t.localhost"]
        ),
        "large": serving("qwen-30b", models=["qwen-30b"], tier="quality", hosts=["t.localhost"]),
    }
    with running(tmp_path_factory.mktemp("locked"), gpu=gpus, access=password_access()) as proxy:
        yield proxy


def test_the_sdk_gets_the_configured_models_at_once(locked: RunningProxy) -> None:
    headers = {"Host": "named.localhost"}
    client = openai.OpenAI(base_url=locked.url("/v1"), api_key=KEY, default_headers=headers)
    began = time.monotonic()
    assert [model.id for model in client.models.list()] == ["qwen-8b"]
    assert client.models.retrieve("qwen-8b").object == "model"
    assert client.models.retrieve("Qwen/Qwen3-VL-8B").id == "Qwen/Qwen3-VL-8B"  # by a pattern
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist") as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"
    assert time.monotonic() - began < 15
    assert locked.untouched("named")


def test_it_is_marked(locked: RunningProxy) -> None:
    answer = listed(locked, "named.localhost")
    assert answer.headers["x-qwenctl-models"] == "remembered"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["qwenctl"] == {"remembered": True}
    assert answer.json()["data"][0]["qwenctl"] == {"gpu": "named", "source": "settings"}
    head = requests.head(
        locked.url("/v1/models"), headers={"Host": "named.localhost", **KEYED}, timeout=5
    )
    assert (head.status_code, head.content) == (200, b"")
    assert names(listed(locked, "named.localhost", "/v1/models/")) == ["qwen-8b"]


def test_it_is_for_who_may_use_the_gpu(locked: RunningProxy) -> None:
    for path in ("/v1/models", "/v1/models/qwen-8b"):
        assert listed(locked, "named.localhost", path, Authorization="").status_code == 401


def test_blocked_and_failed_gpus_have_models_too(locked: RunningProxy) -> None:
    locked.store.block("named", "maintenance:eve", 600, reason="x", actor="eve")
    try:
        assert names(listed(locked, "named.localhost")) == ["qwen-8b"]
    finally:
        locked.store.unblock("named", actor="eve")


def test_other_requests_are_not_answered_so(locked: RunningProxy) -> None:
    for path in ("/v1/modelsx", "/models", "/x/v1/models"):
        assert listed(locked, "named.localhost", path).status_code == 503


def test_without_anything_known_it_says_so_at_once(locked: RunningProxy) -> None:
    answer = listed(locked, "unknown.localhost")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "retry-after" not in answer.headers


def test_tiers_of_a_host_are_one_list_asleep_and_awake(locked: RunningProxy) -> None:
    host = "t.localhost"
    assert names(listed(locked, host)) == ["qwen-4b", "qwen-30b"]
    assert names(listed(locked, host, **{"X-Qwenctl-Tier": "quality"})) == ["qwen-30b"]
    assert listed(locked, host, "/v1/models/qwen-30b").json()["qwenctl"]["gpu"] == "large"
    assert locked.untouched("small")
    assert locked.untouched("large")
    locked.store.pin("small", "pin:test", 3600.0, reason="test", actor="test")
    until(lambda: locked.snapshot("small").phase.serves, 20, "the small GPU")

    def merged() -> bool:
        return listed(locked, host).headers.get("x-qwenctl-models") == "merged"

    until(merged, 5, "a list of the node's")
    answer = listed(locked, host)  # as requests asks: compressed, if the node likes
    assert names(answer) == ["tiny", "qwen-4b", "qwen-30b"]
    assert ["qwenctl" in entry for entry in answer.json()["data"]] == [False, False, True]
    asked = listed(locked, host, **{"X-Qwenctl-Tier": "speed"})
    assert names(asked) == ["tiny", "qwen-4b"]
    assert listed(locked, host, "/v1/models/qwen-30b").json()["qwenctl"]["gpu"] == "large"
    assert locked.untouched("large")


def test_what_a_node_has_listed_is_remembered_over_sleep_and_restart(tmp_path: Path) -> None:
    with running(tmp_path, gpu={"main": serving("tiny", "lora-1")}) as proxy:
        proxy.wake()
        awake = listed(proxy)
        assert names(awake) == ["tiny", "lora-1"]
        assert "x-qwenctl-models" not in awake.headers
        sleep(proxy)
        for _ in range(2):
            answer = listed(proxy)
            assert names(answer) == ["tiny", "lora-1"]
            entry = answer.json()["data"][0]
            assert entry == {
                "id": "tiny",
                "object": "model",
                "created": 7,
                "owned_by": "vllm",
                "qwenctl": {"gpu": "main", "source": "last seen"},
            }
            assert proxy.snapshot().phase.value == "off"
            proxy.stop()
            proxy.start()
        # Another command may serve other models.
        proxy.stop()
        proxy.settings["gpu"]["main"]["service"][0]["command"].append("new")
        proxy.write_config()
        proxy.start()
        assert listed(proxy).status_code == 503


def test_a_client_that_never_asks_leaves_a_list_behind(tmp_path: Path) -> None:
    with running(tmp_path, gpu={"main": serving("tiny")}) as proxy:
        chat = requests.post(proxy.url("/v1/chat/completions"), json={}, timeout=30)
        assert chat.status_code == 200
        until(lambda: proxy.store.models("main"), 5, "the memory of its models")
        sleep(proxy)
        assert names(listed(proxy)) == ["tiny"]
