"""`qwenctl down` against requests and connections that are already there."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from websockets.sync.client import connect

from tests.integration.proxy.running import RunningProxy, gpu, leases, running
from tests.support.waiting import until


def test_a_message_counts_after_a_down_that_came_after_the_connection(on: RunningProxy) -> None:
    with connect(f"ws://127.0.0.1:{on.port}/ws", proxy=None) as client:
        client.send("hello")
        assert client.recv(timeout=5) == "hello"
        # Written back before the `down`, so that only the next message can renew it.
        until(lambda: "request:127.0.0.1" in leases(on), 10, "the first lease")
        on.store.release("main", actor="eve")
        on.store.pin("main", "pin:test", 3600.0, reason="test", actor="test")
        assert "request:127.0.0.1" not in leases(on)
        client.send("still here")
        assert client.recv(timeout=5) == "still here"
        until(lambda: "request:127.0.0.1" in leases(on), 10, "the lease")
    on.wait_for("ready")


@pytest.mark.slow
def test_a_request_held_before_a_down_is_given_up(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", idle_timeout=3, local={"fail": "boot_hangs"})}
    with running(tmp_path, gpu=gpus) as proxy, ThreadPoolExecutor(1) as pool:
        held = pool.submit(requests.post, proxy.url("/x"), json={}, timeout=30)
        until(lambda: leases(proxy), 10, "the lease")
        proxy.store.release("main", actor="eve")
        answer = held.result(timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "down" in answer.json()["detail"]
        assert leases(proxy) == []
        asked = [e for e in proxy.store.events("main", 1000) if e.kind in ("lease", "down")]
        assert [event.kind for event in asked] == ["lease", "down"]


def test_what_is_sent_to_an_instance_that_has_died_is_held_until_it_is_back(tmp_path: Path) -> None:
    """It is sure only after some seconds that it is gone: its agent may be cut off."""
    timing = {"drain": 3, "heartbeat": 3, "retry": 0.5}
    rules = [{"activity": "wakes", "methods": ["POST"]}]
    gpus = {"main": gpu(preset="generic", rules=rules, timing=timing)}
    with running(tmp_path, gpu=gpus) as proxy:
        proxy.wake()
        file = next((tmp_path / "state").glob("instances/*/*/status.json"))
        machine = psutil.Process(json.loads(file.read_text())["pid"])
        for process in (*machine.children(recursive=True), machine):
            process.kill()

        def send(after: float) -> int:
            time.sleep(after)
            return requests.post(proxy.url("/echo"), data=b"x", timeout=60).status_code

        with ThreadPoolExecutor(8) as pool:
            page = pool.submit(
                requests.get, proxy.url("/"), headers={"Accept": "text/html"}, timeout=60
            )
            codes = list(pool.map(send, (0.3, 1.0, 2.0, 3.0, 4.0)))
        # The first may have been on a connection that the node had open.
        assert set(codes[1:]) == {200}
        assert page.result().status_code in (200, 503)
        assert proxy.snapshot().start_seq == 2
