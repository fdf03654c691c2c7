"""A proxy that is terminated answers what it holds and ends."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.integration.proxy.running import gpu, leases, running
from tests.support.waiting import until


@pytest.mark.slow
def test_a_proxy_that_is_told_to_stop(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", local={"fail": "boot_hangs"})}
    with running(tmp_path, gpu=gpus) as proxy, ThreadPoolExecutor(3) as pool:

        def watch() -> float:
            events = proxy.url("/_qwenctl/api/events")
            with requests.get(events, stream=True, timeout=30) as stream:
                for _ in stream.iter_content(None):
                    watching.set()
            return time.monotonic()

        def wait() -> tuple[requests.Response, float]:
            return requests.post(proxy.url("/x"), json={}, timeout=30), time.monotonic()

        watching = threading.Event()
        stream, held = pool.submit(watch), pool.submit(wait)
        assert watching.wait(10)
        until(lambda: leases(proxy), 10, "the lease")
        told_at = time.monotonic()
        proxy.process.terminate()
        answer, answered_at = held.result(timeout=20)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answered_at - told_at < 3
        assert stream.result(timeout=20) - told_at < 3
        assert proxy.process.wait(timeout=15) in (0, -signal.SIGTERM)
        assert "Traceback" not in proxy.log
