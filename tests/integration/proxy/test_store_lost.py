"""The store goes away: what works on, what says so, and that it heals."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.proxy.running import RunningProxy, gpu, running
from tests.support.net import free_port
from tests.support.tcp_switch import TcpSwitch
from tests.support.valkey_server import ValkeyServer
from tests.support.waiting import until

BROWSER = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port(), appendonly="yes") as server:
        yield server


def timed(method: str, url: str, **options: Any) -> tuple[requests.Response, float]:
    began = time.monotonic()
    return requests.request(method, url, timeout=20, **options), time.monotonic() - began


@pytest.mark.slow
def test_the_store_is_lost_and_found(server: ValkeyServer, tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic"), "idle": gpu(preset="generic", hosts=["idle.localhost"])}
    with running(tmp_path / "proxy", redis_url=server.url, gpu=gpus) as proxy:
        proxy.wake()
        server.kill()
        # The node is known to be ready: on it goes.
        for _ in range(30):
            answer, seconds = timed("POST", proxy.url("/generate"), json={})
            assert answer.status_code == 200, answer.text
            assert seconds < 3
        assert requests.get(proxy.url("/_qwenctl/healthz"), timeout=5).status_code == 200
        asleep = {"Host": "idle.localhost"}
        for method, path, headers in (
            ("GET", "/_qwenctl/readyz", {}),
            ("GET", "/_qwenctl/api/status", {}),
            ("POST", "/_qwenctl/api/wake", {}),
            ("POST", "/x", {**asleep, "Content-Type": "application/json"}),
        ):
            answer, seconds = timed(method, proxy.url(path), headers=headers)
            assert answer.status_code == 503, path
            assert answer.headers["content-type"].startswith("application/problem+json")
            assert answer.json()["code"] == "store_lost"
            assert answer.headers["retry-after"]
            assert seconds < 8
        page, _ = timed("GET", proxy.url("/"), headers={**asleep, **BROWSER})
        assert (page.status_code, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
        assert "Traceback" not in page.text
        starts = tmp_path / "proxy/state/instances/default/idle/starts.log"
        assert not starts.exists()
        server.start()
        until(lambda: requests.get(proxy.url("/_qwenctl/readyz"), timeout=10).ok, 10)
        # "Lost" is believed for a second before the store is asked again.
        until(
            lambda: requests.post(proxy.url("/x"), json={}, headers=asleep, timeout=30).ok,
            3 + 20,
            "an answer of the woken GPU",
        )
        assert "Traceback" not in proxy.log


def test_a_frozen_store_holds_up_no_liveness_probe(server: ValkeyServer, tmp_path: Path) -> None:
    with running(tmp_path / "proxy", redis_url=server.url) as proxy:
        server.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(40) as pool:
            # More than there are threads for pages.
            pages = [
                pool.submit(timed, "GET", proxy.url("/_qwenctl/api/status")) for _ in range(40)
            ]
            time.sleep(0.5)
            for _ in range(5):
                answer, seconds = timed("GET", proxy.url("/_qwenctl/healthz"))
                assert answer.json()["status"] == "ok"
                assert seconds < 2
            answer, seconds = timed("GET", proxy.url("/_qwenctl/readyz"))
            assert (answer.status_code, answer.json()["code"]) == (503, "store_lost")
            assert seconds < 5
            server.process.send_signal(signal.SIGCONT)
            for page in pages:
                assert page.result()[0].status_code in (200, 503)
        until(lambda: requests.get(proxy.url("/_qwenctl/readyz"), timeout=10).ok, 10)


def test_a_proxy_follows_a_failover_without_a_restart(server: ValkeyServer, tmp_path: Path) -> None:
    with (
        ValkeyServer(port=free_port()) as successor,
        TcpSwitch(server.port) as front,
        running(
            tmp_path / "proxy",
            redis_url=f"redis://127.0.0.1:{front.port}",
            gpu={"main": gpu(preset="generic")},
        ) as proxy,
    ):
        ready = proxy.url("/_qwenctl/readyz")
        assert requests.get(ready, timeout=10).ok
        server.client().replicaof("127.0.0.1", successor.port)
        answer, seconds = timed("GET", ready)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_lost")
        assert seconds < 3
        front.upstream = successor.port
        until(lambda: requests.get(ready, timeout=10).ok, 5)
        until(
            lambda: requests.post(proxy.url("/x"), json={}, timeout=30).ok,
            10,
            "an answer of the woken GPU",
        )


def test_a_proxy_does_not_start_without_its_store(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be reached"):
        RunningProxy(tmp_path, redis_url=f"redis://127.0.0.1:{free_port()}")
