"""A GPU that is off: who wakes it, who waits how, and what each kind of client is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

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

BROWSER = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}
SAME = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
JSON = {"Content-Type": "application/json"}
SLOW_BOOT = {"boot_seconds": 1.5, "stop_seconds": 0.05}

NAMES = (
    "visit",
    "click",
    "never",
    "fails",
    "blocked",
    "denied",
    "once",
    "big",
    "leaver",
    "limit",
    "tabs",
)


@pytest.fixture(scope="module")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """One proxy with a sleeping GPU for each way to be woken; each test has its own GPU."""
    gpus = {
        name: gpu(hosts=[f"{name}.localhost"], preset="generic", boot_estimate=20) for name in NAMES
    }
    gpus["click"]["wake_on"] = "click"
    gpus["never"]["wake_on"] = "never"
    gpus["fails"]["api"] = "fail"
    gpus["denied"]["local"] = {**SLOW_BOOT, "fail": "denied"}
    gpus["big"]["local"] = gpus["once"]["local"] = SLOW_BOOT
    gpus["tabs"].update(idle_timeout="3s", local={"fail": "boot_hangs"})
    gpus["leaver"]["local"] = gpus["limit"]["local"] = {"fail": "boot_hangs"}
    with running(tmp_path_factory.mktemp("asleep"), gpu=gpus, proxy={"hold": 4}) as proxy:
        yield proxy


def ask(
    proxy: RunningProxy, name: str, method: str = "GET", path: str = "/", **options: Any
) -> requests.Response:
    headers = {"Host": f"{name}.localhost", **options.pop("headers", {})}
    return requests.request(
        method, proxy.url(path), headers=headers, timeout=20, allow_redirects=False, **options
    )


def is_problem(answer: requests.Response, status: int, code: str = "") -> bool:
    body = answer.json()
    return (
        answer.status_code == status == body["status"]
        and answer.headers["content-type"].startswith("application/problem+json")
        and (not code or body["code"] == code)
    )


# Without waking


def test_the_waiting_page(asleep: RunningProxy) -> None:
    answer = ask(asleep, "never", path="/deep?x=1", headers=BROWSER)
    assert answer.status_code == 503
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    head = ask(asleep, "never", "HEAD", "/deep?x=1", headers=BROWSER)
    assert (head.status_code, head.content) == (503, b"")
    assert asleep.untouched("never")


def test_the_waiting_page_leads_back_to_the_very_address(asleep: RunningProxy) -> None:
    """A %3F or %2F in the address must not become another address."""
    answer = ask(asleep, "never", path="/file%3Fa%2Fb%20c?x=%26", headers=BROWSER)
    assert "/file%3Fa%2Fb%20c?x=%26" in answer.text


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_a_program_never_gets_html(asleep: RunningProxy, method: str, accept: str) -> None:
    answer = ask(asleep, "never", method, "/x", headers={"Accept": accept})
    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.headers["cache-control"] == "no-store"
    assert "retry-after" not in answer.headers  # waiting alone changes nothing
    assert b"<" not in answer.content
    assert asleep.untouched("never")


def test_wake_on_never(asleep: RunningProxy) -> None:
    for headers in (SAME, JSON, {**SAME, **JSON, "Origin": "http://never.localhost"}):
        assert is_problem(ask(asleep, "never", "POST", "/x", headers=headers), 503, "not_ready")
    wake = ask(asleep, "never", "POST", "/_qwenctl/api/wake", headers=SAME)
    assert is_problem(wake, 403, "may_not_wake")
    assert asleep.untouched("never")


def test_a_ready_looking_prefetch_of_the_page_does_not_wake(asleep: RunningProxy) -> None:
    for purpose in ({"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}):
        assert ask(asleep, "visit", headers={**BROWSER, **purpose}).status_code == 503
    assert asleep.untouched("visit")


def test_wake_is_post_only_and_same_site_only(asleep: RunningProxy) -> None:
    wake = "/_qwenctl/api/wake"
    for method in ("GET", "HEAD", "PUT"):
        assert ask(asleep, "visit", method, wake).status_code == 405
    for path in (wake, "/_qwenctl/wake"):
        for headers in (
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://visit.localhost:1"},
        ):
            answer = ask(asleep, "visit", "POST", path, headers=headers)
            assert is_problem(answer, 403, "cross_site"), headers
    assert asleep.untouched("visit")
    unknown = ask(asleep, "visit", "POST", wake + "?gpu=nothing", headers=SAME)
    assert is_problem(unknown, 404, "no_such_gpu")


def test_another_sites_request_does_not_wake(asleep: RunningProxy) -> None:
    for headers in (
        {**JSON, "Origin": "http://evil.example"},
        {**JSON, "Sec-Fetch-Site": "cross-site"},
    ):
        assert is_problem(ask(asleep, "visit", "POST", "/x", headers=headers), 503, "not_ready")
    assert asleep.untouched("visit")


def test_an_unknown_host_name_is_refused_without_access_control(asleep: RunningProxy) -> None:
    for path in ("/", "/_qwenctl/api/status", "/_qwenctl/healthz"):
        for host in ("rebound.example", "localhost.evil.example", "[", "127.0.0.1.evil.example"):
            answer = requests.get(asleep.url(path), headers={"Host": host}, timeout=5)
            assert is_problem(answer, 421, "unknown_host"), host
    for host in ("localhost", "127.0.0.1:1", "[::1]", "LOCALHOST"):
        answer = requests.get(asleep.url("/_qwenctl/healthz"), headers={"Host": host}, timeout=5)
        assert answer.status_code == 200


def test_blocked(asleep: RunningProxy) -> None:
    asleep.store.block("blocked", "maintenance:eve", 600, reason="new disk", actor="eve")
    answer = ask(asleep, "blocked", "POST", "/x", headers=JSON)
    assert is_problem(answer, 503, "blocked")
    assert "maintenance:eve" in answer.json()["detail"]
    assert "new disk" in answer.json()["detail"]
    wake = ask(asleep, "blocked", "POST", "/_qwenctl/api/wake", headers=SAME)
    assert is_problem(wake, 423, "blocked")
    assert ask(asleep, "blocked", headers=BROWSER).status_code == 503
    assert not asleep.snapshot("blocked").leases
    asleep.store.unblock("blocked", actor="eve")


# Waking


def test_the_page_wakes_once_however_many_press(asleep: RunningProxy) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda _: ask(asleep, "once", "POST", "/_qwenctl/api/wake", headers=SAME), range(40)
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    assert answers[0].json()["gpu"] == "once"
    asleep.wait_for("ready", "once")
    starts = asleep.directory / "state/instances/default/once/starts.log"
    assert len(starts.read_text().splitlines()) == 1
    assert ask(asleep, "once", path="/hello").json()["target"] == "/hello"


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/_qwenctl/api/status", SAME), ("/a/page", BROWSER), ("/_qwenctl/waiting", BROWSER)],
    ids=["a poll", "a page without script", "the page's own address"],
)
def test_a_page_that_comes_again_keeps_its_demand(
    asleep: RunningProxy, path: str, headers: dict[str, str]
) -> None:
    def expiry() -> float:
        return max(lease.expiry for lease in asleep.snapshot("tabs").leases)

    assert ask(asleep, "tabs", "POST", "/_qwenctl/api/wake", headers=SAME).status_code == 202
    until(lambda: asleep.snapshot("tabs").phase.waking, 10, "the start")
    before = expiry()
    time.sleep(1.5)  # renewed every third of the idle timeout
    ask(asleep, "tabs", path=path)
    assert expiry() == before, "a program that asks is no page"
    ask(asleep, "tabs", path=path, headers=headers)
    assert expiry() > before


def test_the_form_wakes_and_leads_back(asleep: RunningProxy) -> None:
    """For browsers without scripts."""
    form = {"Origin": "http://click.localhost", "Accept": "text/html"}
    for target, back in (("/chat?a=1", "/chat?a=1"), ("//evil.example", "/"), ("/\\evil", "/")):
        answer = ask(asleep, "click", "POST", "/_qwenctl/wake", headers=form, data={"next": target})
        assert (answer.status_code, answer.headers["location"]) == (303, back)
    asleep.wait_for("ready", "click")


@pytest.mark.slow
def test_events_tell_each_phase(tmp_path: Path) -> None:
    gpus = {"main": gpu(local={"boot_seconds": 0.5, "stop_seconds": 0.3}, idle_timeout=1)}
    with running(tmp_path, gpu=gpus) as proxy:
        phases: list[str] = []
        with requests.get(
            proxy.url("/_qwenctl/api/events?gpu=main"), stream=True, timeout=30
        ) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            lines = stream.iter_lines(chunk_size=1)
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                status = json.loads(line[6:])
                if not phases or phases[-1] != status["phase"]:
                    phases.append(status["phase"])
                if phases == ["off"]:
                    requests.post(proxy.url("/_qwenctl/api/wake"), timeout=5)
                if phases[-1] == "ready":
                    break
        # The stream sends what is true when it looks: a local boot may be over between two looks.
        seen = [phase for phase in phases if phase != "booting"]
        assert seen == ["off", "starting", "loading", "ready"]


def test_events_need_a_gpu_that_there_is(asleep: RunningProxy) -> None:
    answer = requests.get(asleep.url("/_qwenctl/api/events?gpu=nothing"), timeout=5)
    assert is_problem(answer, 404, "no_such_gpu")


# Held requests


@pytest.mark.slow
def test_a_large_post_is_held_unread_and_delivered_whole(asleep: RunningProxy) -> None:
    size = 5 << 20
    body = bytes(range(256)) * (size // 256)
    sent_when_ready: list[bool] = []
    with RawClient(asleep.port, timeout=20) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        client.send(
            f"POST /big HTTP/1.1\r\nHost: big.localhost\r\nContent-Length: {size}\r\n"
            "Content-Type: application/json\r\n\r\n".encode()
        )

        def send() -> None:
            client.send(body)
            sent_when_ready.append(asleep.snapshot("big").phase.serves)

        sender = threading.Thread(target=send)
        sender.start()
        status, _, answer = client.answer()
        sender.join()
    assert status == 200
    assert json.loads(answer)["size"] == size
    # The proxy did not take it in: the sending could end only after the node was there.
    assert sent_when_ready == [True]


def test_expect_100_is_answered_when_the_node_is_there(asleep: RunningProxy) -> None:
    asleep.store.release("big", actor="test")  # whatever its state is, a held or passed POST works
    with RawClient(asleep.port, timeout=20) as client:
        client.send(
            b"POST /later HTTP/1.1\r\nHost: big.localhost\r\nContent-Length: 2\r\n"
            b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
        )
        assert client.head()[0] == 100
        assert asleep.snapshot("big").phase.serves
        client.send(b"{}")
        assert client.answer()[0] == 200


@pytest.mark.slow
def test_the_limit_of_holding(asleep: RunningProxy) -> None:
    began = time.monotonic()
    answer = ask(asleep, "limit", "POST", "/x", json={"a": 1})
    assert is_problem(answer, 503, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1
    assert 3.5 < time.monotonic() - began < 8


def test_api_fail_wakes_and_does_not_hold(asleep: RunningProxy) -> None:
    began = time.monotonic()
    answer = ask(asleep, "fails", "POST", "/x", json={})
    assert is_problem(answer, 503, "not_ready")
    assert answer.headers["retry-after"]
    assert time.monotonic() - began < 2
    asleep.wait_for("ready", "fails")
    assert ask(asleep, "fails", "POST", "/x", json={}).status_code == 200


def test_no_waiting_for_what_no_waiting_mends(asleep: RunningProxy) -> None:
    began = time.monotonic()
    answer = ask(asleep, "denied", "POST", "/x", json={})
    assert is_problem(answer, 503, "denied")
    assert time.monotonic() - began < 3


def held(proxy: RunningProxy) -> float:
    text = requests.get(proxy.url("/_qwenctl/metrics"), timeout=5).text
    rows = [line for line in text.splitlines() if line.startswith("qwenctl_held_requests{")]
    return sum(float(row.rpartition(" ")[2]) for row in rows)


@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"],
)
def test_a_client_that_leaves_is_not_held(asleep: RunningProxy, rest: bytes) -> None:
    until(lambda: held(asleep) == 0, 6)
    with RawClient(asleep.port) as client:
        client.send(
            b"POST /x HTTP/1.1\r\nHost: leaver.localhost\r\nContent-Type: application/json\r\n"
            + rest
        )
        until(lambda: held(asleep) == 1, 2, "the holding")
    until(lambda: held(asleep) == 0, 1.0, "the notice of the hanging up")


@pytest.mark.slow
def test_many_held_requests_all_get_through(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", local=SLOW_BOOT)}
    with running(tmp_path, gpu=gpus, proxy={"max_held": 30}) as proxy:
        with ThreadPoolExecutor(40) as pool:
            answers = list(
                pool.map(
                    lambda n: requests.post(proxy.url(f"/{n}"), json={"n": n}, timeout=20),
                    range(40),
                )
            )
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [200] * 30 + [503] * 10
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "too many" in refused.json()["detail"]


# With a password


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    gpus = {"main": gpu(preset="generic", wake_on="click")}
    with running(tmp_path_factory.mktemp("locked"), gpu=gpus, access=password_access()) as proxy:
        yield proxy


def test_without_access_nothing_wakes(locked: RunningProxy) -> None:
    for method, path in (("POST", "/x"), ("POST", "/_qwenctl/api/wake"), ("GET", "/")):
        for headers in ({}, SAME, JSON, {"Authorization": "Bearer qk_wrong"}):
            answer = ask(locked, "localhost", method, path, headers=headers)
            assert is_problem(answer, 401, "sign_in")
    assert ask(locked, "localhost", headers=BROWSER).status_code == 303
    assert locked.untouched()


def test_an_api_key_wakes_whatever_wake_on_says(locked: RunningProxy) -> None:
    answer = requests.post(
        locked.url("/x"), data=b"x", headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert (answer.status_code, answer.json()["size"]) == (200, 1)
    leases = [lease.name for lease in locked.snapshot().leases]
    assert "request:key:ci" in leases


def test_the_password_opens_the_page(locked: RunningProxy) -> None:
    locked.wake()
    with requests.Session() as browser:
        page = browser.get(locked.url("/chat?a=1"), headers=BROWSER, timeout=5)
        assert "/_qwenctl/login" in page.url
        answer = browser.post(
            locked.url("/_qwenctl/login"),
            data={"password": PASSWORD, "next": "/chat?a=1"},
            headers=SAME,
            timeout=5,
        )
        assert answer.url == locked.url("/chat?a=1")
        assert answer.json()["target"] == "/chat?a=1"


def test_memory_of_all_that_is_small(asleep: RunningProxy) -> None:
    assert psutil.Process(asleep.process.pid).memory_info().rss < 200 << 20
    assert "Traceback" not in asleep.log
