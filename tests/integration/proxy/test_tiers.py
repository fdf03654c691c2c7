"""Several GPUs behind one host name: who is chosen, and that nothing else is woken or changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from proxy.control.flask_app import TIERS_AGE
from tests.integration.proxy.running import RawClient, RunningProxy, gpu, running
from tests.support.waiting import until

MIB = 1 << 20
SMALL, LARGE = "qwen3-vl-4b", "Qwen/Qwen3-VL-8B-Instruct"
CHAT = "/v1/chat/completions"


def gpus(**changes: Any) -> dict[str, Any]:
    return {
        "small": gpu(tier="speed", models=[SMALL], preset="openai", **changes),
        "large": gpu(tier="quality", models=["Qwen/*"], preset="openai", **changes),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy with two GPUs for all hosts, both on."""
    with running(tmp_path_factory.mktemp("tiers"), gpu=gpus()) as proxy:
        for name in ("small", "large"):
            proxy.store.pin(name, "pin:test", 3600.0, reason="test", actor="test")
        for name in ("small", "large"):
            until(lambda n=name: proxy.snapshot(n).phase.value == "ready", 30, f"{name} ready")
        yield proxy


@pytest.fixture
def asleep(tmp_path: Path) -> Iterator[RunningProxy]:
    with running(tmp_path, gpu=gpus()) as proxy:
        yield proxy


def chosen(proxy: RunningProxy, target: str) -> list[str]:
    """The GPUs that have seen a request for that target."""
    found = []
    for name in ("small", "large"):
        with contextlib.suppress(requests.ConnectionError):  # it is off
            found += [name] if proxy.journal_of(target, name) else []
    return found


def ask(proxy: RunningProxy, mark: str, body: bytes, **headers: str) -> tuple[str, dict[str, Any]]:
    """Post a body; which GPU answered, and what it has seen."""
    target = f"{CHAT}?{mark}"
    headers = {"Content-Type": "application/json", **headers}
    answer = requests.post(proxy.url(target), data=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    (name,) = chosen(proxy, target)
    return name, answer.json()


def body(model: str, picture: int = 0, *, last: bool = False) -> bytes:
    """A request with a picture of so many bytes; the model before it, or after it."""
    url = "data:image/png;base64," + "iVBOR/" * (picture // 6)
    content: dict[str, Any] = {
        "messages": [{"role": "user", "model": "nested", "content": [{"image_url": {"url": url}}]}]
    }
    parts = {**content, "model": model} if last else {"model": model, **content}
    return json.dumps(parts).encode()


def test_the_header_decides(both: RunningProxy) -> None:
    for tier, name in (("quality", "large"), ("speed", "small")):
        found, seen = ask(both, f"header-{tier}", body(SMALL), **{"X-Qwenctl-Tier": tier})
        assert found == name
        assert "x-qwenctl-tier" not in {key.lower() for key, _ in seen["headers"]}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("picture", [0, 60_000, 3 * MIB])
def test_the_model_decides_and_the_body_arrives_as_it_was(
    both: RunningProxy, picture: int, last: bool
) -> None:
    for model, name in ((SMALL, "small"), (LARGE, "large")):
        content = body(model, picture, last=last)
        found, seen = ask(both, f"model-{name}-{picture}-{last}", content)
        assert found == name
        assert seen["size"] == len(content)
        assert seen["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_model_beyond_what_is_read_ahead_is_not_found(both: RunningProxy) -> None:
    content = body(LARGE, 17 * MIB, last=True)
    found, seen = ask(both, "beyond", content)
    assert found == "small"
    assert seen["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("mark", "content", "headers"),
    [
        ("unknown", body("gpt-9"), {}),
        ("no-json", b"model=Qwen/x", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("broken", b'{"messages": [', {}),
        ("empty", b"", {}),
        ("packed", body(LARGE), {"Content-Encoding": "odd"}),
        ("gone", body("gpt-9"), {"Cookie": "qwenctl_tier=gone"}),
    ],
)
def test_whatever_says_nothing_goes_to_the_first(
    both: RunningProxy, mark: str, content: bytes, headers: dict[str, str]
) -> None:
    found, seen = ask(both, mark, content, **headers)
    assert found == "small"
    assert seen["sha256"] == hashlib.sha256(content).hexdigest()


def test_other_paths_and_methods_are_not_looked_into(both: RunningProxy) -> None:
    answer = requests.post(both.url("/other?path"), json={"model": LARGE}, timeout=30)
    assert answer.status_code == 200
    assert chosen(both, "/other?path") == ["small"]
    requests.put(both.url(f"{CHAT}?put"), json={"model": LARGE}, timeout=30)
    assert chosen(both, f"{CHAT}?put") == ["small"]


def test_a_chunked_body_is_looked_into_as_it_comes(both: RunningProxy) -> None:
    content = body(LARGE, 200_000, last=True)
    with RawClient(both.port) as client:
        client.send(
            f"POST {CHAT}?chunked HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for at in range(0, len(content), 7_001):
            piece = content[at : at + 7_001]
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        status, _, seen = client.answer()
    assert status == 200
    assert json.loads(seen)["sha256"] == hashlib.sha256(content).hexdigest()
    assert chosen(both, f"{CHAT}?chunked") == ["large"]


def test_a_client_that_waits_to_be_told_to_send_its_body(both: RunningProxy) -> None:
    content = body(LARGE, 200_000)
    with RawClient(both.port) as client:
        client.send(
            f"POST {CHAT}?expect HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert client.head()[0] == 100
        client.send(content)
        status, _, seen = client.answer()
    assert status == 200
    assert json.loads(seen)["sha256"] == hashlib.sha256(content).hexdigest()
    assert chosen(both, f"{CHAT}?expect") == ["large"]


def test_the_cookie_decides_and_stays_here(both: RunningProxy) -> None:
    cookies = "a=1; qwenctl_tier=quality; qwenctl_visit=0123456789abcdef; b=2"
    answer = requests.get(both.url("/cookie"), headers={"Cookie": cookies}, timeout=30)
    assert chosen(both, "/cookie") == ["large"]
    seen = [value for key, value in answer.json()["headers"] if key.lower() == "cookie"]
    assert seen == ["a=1; b=2"]


@pytest.mark.parametrize(
    "path", ["/x", "/_qwenctl/api/status", "/_qwenctl/api/events", "/_qwenctl/gate"]
)
def test_an_unknown_tier_is_told_the_known_ones(both: RunningProxy, path: str) -> None:
    headers = {"X-Qwenctl-Tier": "fast"}
    with requests.get(both.url(path), headers=headers, stream=True, timeout=30) as answer:
        assert answer.status_code == 400
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert answer.json()["code"] == "unknown_tier"
        assert "known: speed, quality" in answer.json()["detail"]


def test_the_control_plane_means_the_same_gpu(both: RunningProxy) -> None:
    for headers, name in (
        ({}, "small"),
        ({"X-Qwenctl-Tier": "quality"}, "large"),
        ({"Cookie": "qwenctl_tier=quality"}, "large"),
    ):
        status = requests.get(both.url("/_qwenctl/api/status"), headers=headers, timeout=30).json()
        assert status["gpu"] == name
        gate = requests.get(both.url("/_qwenctl/gate"), headers=headers, timeout=30)
        assert gate.headers["x-qwenctl-node"].endswith(f":{both.node_port(name)}")
        # Caddy's forward_auth passes the visitor's own query on, which is the WebUI's.
        gate = requests.get(both.url("/_qwenctl/gate?gpu=other"), headers=headers, timeout=30)
        assert gate.headers["x-qwenctl-node"].endswith(f":{both.node_port(name)}")
        url = both.url("/_qwenctl/api/events")
        with requests.get(url, headers=headers, stream=True, timeout=30) as events:
            lines = (line for line in events.iter_lines() if line.startswith(b"data: "))
            assert json.loads(next(lines).removeprefix(b"data: "))["gpu"] == name


def test_the_tiers_are_listed(both: RunningProxy) -> None:
    answer = requests.get(both.url("/_qwenctl/api/tiers"), timeout=30).json()
    assert answer == {
        "tiers": [
            {"tier": "speed", "gpu": "small", "state": "ready", "seconds": None},
            {"tier": "quality", "gpu": "large", "state": "ready", "seconds": None},
        ]
    }


def test_many_pages_that_ask_for_the_tiers_ask_the_store_seldom(both: RunningProxy) -> None:
    def histories_read() -> int:
        stats: Any = both.store._redis.info("commandstats")
        names = ("cmdstat_xrange", "cmdstat_xrevrange")
        return sum(stats.get(name, {"calls": 0})["calls"] for name in names)

    began, before = time.monotonic(), histories_read()
    with requests.Session() as page:
        for _ in range(100):
            assert page.get(both.url("/_qwenctl/api/tiers"), timeout=30).status_code == 200
    rounds = (time.monotonic() - began) / TIERS_AGE + 2
    assert histories_read() - before <= 2 * rounds  # two GPUs


# Asleep


def test_a_held_request_wakes_its_gpu_only(asleep: RunningProxy) -> None:
    content = body(LARGE, 2 * MIB, last=True)
    found, seen = ask(asleep, "held", content)
    assert found == "large"
    assert seen["sha256"] == hashlib.sha256(content).hexdigest()
    assert asleep.untouched("small")


def test_a_client_that_hangs_up_in_its_body_wakes_nothing(asleep: RunningProxy) -> None:
    with RawClient(asleep.port) as client:
        client.send(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            'Content-Length: 100000\r\n\r\n{"messages": ['.encode()
        )
        time.sleep(0.5)  # so that it is being read

    def counted() -> bool:
        text = requests.get(asleep.url("/_qwenctl/metrics"), timeout=10).text
        return 'qwenctl_requests_total{gpu="small",outcome="client_gone"} 1.0' in text

    until(counted, 20, "the hanging up")
    assert asleep.untouched("small")
    assert asleep.untouched("large")


def test_one_chooses_on_the_page_without_script(asleep: RunningProxy) -> None:
    """The form's way: choose, come back, wake; and what was asked for before is taken back."""
    html = {"Accept": "text/html"}
    visitor = requests.Session()
    page = visitor.get(asleep.url("/some?where=1"), headers=html, timeout=30)
    assert page.status_code == 503
    assert 'value="/some?where=1"' in page.text
    visit = visitor.cookies["qwenctl_visit"]
    assert visit in set("0123456789abcdef")
    assert "Speed" in page.text
    assert asleep.untouched("small")

    answer = visitor.post(
        asleep.url("/_qwenctl/tier"),
        data={"tier": "quality", "next": "/some?where=1"},
        headers=html,
        allow_redirects=False,
        timeout=30,
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/some?where=1")
    assert visitor.cookies["qwenctl_visit"] == visit  # it stays the same
    cookie = answer.headers["set-cookie"]
    assert cookie == "qwenctl_tier=quality; HttpOnly; Path=/; SameSite=Lax"
    page = visitor.get(asleep.url("/some?where=1"), headers=html, timeout=30)
    assert "· large</title>" in page.text
    assert page.text.count('aria-pressed="true"') == 1

    assert visitor.post(asleep.url("/_qwenctl/api/wake"), timeout=30).json()["gpu"] == "large"
    until(lambda: asleep.snapshot("large").phase.value == "ready", 30, "large ready")
    assert asleep.untouched("small")


def test_choosing_takes_back_what_the_page_asked_for(tmp_path: Path) -> None:
    """And not what others behind the same address have asked for."""
    slow = {"boot_seconds": 5, "stop_seconds": 0.05}
    browser = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    with running(tmp_path, gpu=gpus(local=slow)) as proxy:
        choose = proxy.url("/_qwenctl/tier")

        def visitor(visit: str = "") -> requests.Session:
            one = requests.Session()
            if visit:
                one.headers["Cookie"] = f"qwenctl_visit={visit}"
            for name in ("small", "large"):
                url = proxy.url(f"/_qwenctl/api/wake?gpu={name}")
                assert one.post(url, headers=browser, timeout=30).status_code == 202
            return one

        def waiting() -> tuple[int, int]:
            small, large = (len(proxy.snapshot(name).leases) for name in ("small", "large"))
            return small, large

        ada, bob, eve = visitor("3"), visitor("a"), visitor()
        assert waiting() == (3, 3)
        for left, who in ((2, ada), (2, eve), (1, bob)):
            who.post(choose, data={"tier": "quality"}, allow_redirects=False, timeout=30)
            assert waiting() == (left, 3)  # without the cookie nobody knows whose wait it is
        proxy.store.release("small", only="request:127.0.0.1", actor="test")
        until(lambda: proxy.snapshot("small").phase.value == "off", 30, "small off")


def test_made_up_cookies_make_no_leases_without_limit(asleep: RunningProxy) -> None:
    """Nor a history of nothing else."""
    with requests.Session() as one:
        for number in range(40):
            cookie = {"Cookie": f"qwenctl_visit={number:016x}"}
            wake = asleep.url("/_qwenctl/api/wake?gpu=small")
            assert one.post(wake, headers=cookie, timeout=30).status_code == 202
            one.post(asleep.url("/x"), headers=cookie, timeout=30)  # traffic
    assert {lease.name for lease in asleep.snapshot("small").leases if lease.kind == "request"} == {
        "request:127.0.0.1"
    }


def test_taking_back_again_and_again_does_not_fill_the_history(tmp_path: Path) -> None:
    slow = {"boot_seconds": 20, "stop_seconds": 0.05}
    browser = {
        "Cookie": "qwenctl_visit=7",
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Mode": "cors",
    }
    with running(tmp_path, gpu=gpus(local=slow)) as proxy, requests.Session() as one:
        for _ in range(15):
            wake = proxy.url("/_qwenctl/api/wake?gpu=small")
            assert one.post(wake, headers=browser, timeout=30).status_code == 202
            choose, data = proxy.url("/_qwenctl/tier"), {"tier": "quality"}
            one.post(choose, data=data, headers=browser, allow_redirects=False, timeout=30)
        leases = [event for event in proxy.store.events("small", 1000) if event.kind == "lease"]
    assert len(leases) == 11


@pytest.mark.parametrize("tier", ["", "fast"])
def test_a_choice_that_is_none_is_refused(both: RunningProxy, tier: str) -> None:
    answer = requests.post(
        both.url("/_qwenctl/tier"), data={"tier": tier}, allow_redirects=False, timeout=30
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_tier")
    assert "set-cookie" not in answer.headers


def test_another_site_does_not_choose(both: RunningProxy) -> None:
    answer = requests.post(
        both.url("/_qwenctl/tier"),
        data={"tier": "quality"},
        headers={"Sec-Fetch-Site": "cross-site"},
        allow_redirects=False,
        timeout=30,
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")


def test_the_choice_has_a_page_of_its_own(both: RunningProxy) -> None:
    """For whoever wants the other GPU while his is ready, and so sees no waiting page."""
    html = {"Accept": "text/html", "Accept-Language": "zh-CN"}
    page = requests.get(both.url("/_qwenctl/tier?next=/back"), headers=html, timeout=30)
    assert page.status_code == 200
    for words in ("速度", "质量", "已就绪", 'name="next" value="/back"'):
        assert words in page.text
