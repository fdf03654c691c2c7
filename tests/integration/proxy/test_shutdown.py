"""A proxy that is terminated answers what it holds and ends."""

from __future__ import annotations

import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.integration.proxy.running import RawClient, RunningProxy, gpu, leases, running
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


class _Successor:
    """A second proxy process by the same settings, started while the first one drains."""

    def __init__(self, proxy: RunningProxy) -> None:
        self.former = proxy.process
        self.former.terminate()
        began = time.monotonic()
        until(lambda: _free(proxy.port), 5, "the port")
        self.port_free_after = time.monotonic() - began
        proxy.start()

    def leads(self, proxy: RunningProxy) -> bool:
        return f":{proxy.process.pid}:" in proxy.snapshot().leader


def _free(port: int) -> bool:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen()
        except OSError:
            return False
    return True


def _post_events(proxy: RunningProxy, count: int) -> requests.Response:
    """A generation: its answer has an event for each ``/next``."""
    target = proxy.url(f"/events?count={count}")
    return requests.post(target, json={}, stream=True, timeout=60)


def _next(proxy: RunningProxy) -> None:
    requests.get(f"http://127.0.0.1:{proxy.node_port()}/next", timeout=5)


def _works(proxy: RunningProxy) -> list[str]:
    return [name for name in leases(proxy) if name.startswith("inflight:")]


@pytest.mark.slow
def test_a_successor_serves_while_a_stream_goes_on_to_its_end(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", idle_timeout=1)}
    with running(tmp_path, gpu=gpus) as proxy:
        proxy.wake()
        with _post_events(proxy, 3) as stream:
            events = stream.iter_content(None)
            assert next(events) == b"data: 0\n\n"
            proxy.store.release("main", only="pin:test", actor="test", reason="test")
            (mine,) = until(lambda: _works(proxy), 5, "the lease of the stream")
            new = _Successor(proxy)
            assert new.port_free_after < 1
            until(lambda: new.leads(proxy), 5, "the successor's lead")
            assert requests.post(proxy.url("/x"), json={}, timeout=10).status_code == 200
            # Longer than uvicorn's wait, a drain, and what the lease is worth unrenewed.
            until_at = time.monotonic() + 34
            while time.monotonic() < until_at:
                assert new.former.poll() is None
                assert mine in _works(proxy)
                assert proxy.snapshot().phase.value == "ready"
                time.sleep(0.5)
            _next(proxy)
            assert next(events) == b"data: 1\n\n"
            _next(proxy)
            assert next(events) == b"data: 2\n\n"
            _next(proxy)
            assert list(events) == []
        assert new.former.wait(5) in (0, -signal.SIGTERM)
        assert mine not in _works(proxy)
        until(lambda: proxy.snapshot().phase.value == "off", 15, "the end of the GPU")
        assert " ERROR " not in proxy.log
        assert "Traceback" not in proxy.log


def test_what_outlasts_the_grace_is_cut(tmp_path: Path) -> None:
    with running(
        tmp_path, gpu={"main": gpu(preset="generic")}, proxy={"shutdown_grace": "1s"}
    ) as proxy:
        proxy.wake()
        with _post_events(proxy, 3) as stream:
            events = stream.iter_content(None)
            assert next(events) == b"data: 0\n\n"
            silent = RawClient(proxy.port)
            silent.send(b"POST /long-poll HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
            until(lambda: proxy.journal_of("/long-poll"), 5, "the request at the node")
            began = time.monotonic()
            proxy.process.terminate()
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                next(events)
        status, headers, body = silent.answer()
        assert status == 503
        assert headers["retry-after"] == "1"
        assert b"shutting_down" in body
        assert proxy.process.wait(5) in (0, -signal.SIGTERM)
        assert 0.9 < time.monotonic() - began < 4
        assert not _works(proxy)
        assert " ERROR " not in proxy.log
        assert "Traceback" not in proxy.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_what_it_leaves_running(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, gpu={"main": gpu(preset="generic")}) as proxy:
        proxy.wake()
        proxy.process.send_signal(number)
        assert proxy.process.wait(10) in (130, -signal.SIGTERM)
        assert "main" in proxy.log.splitlines()[-1]
        assert "WARNING" in proxy.log.splitlines()[-1]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    with running(tmp_path, gpu={"main": gpu(preset="generic")}) as proxy:
        proxy.wake()
        with _post_events(proxy, 3) as stream:
            events = stream.iter_content(None)
            assert next(events) == b"data: 0\n\n"
            proxy.process.terminate()
            until(lambda: _free(proxy.port), 5, "the port")
            time.sleep(0.3)
            assert proxy.process.poll() is None
            proxy.process.send_signal(second)
            assert proxy.process.wait(4) is not None
        assert not _works(proxy)
        assert " ERROR " not in proxy.log
        assert "Traceback" not in proxy.log


def test_open_tabs_are_not_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, gpu={"main": gpu(preset="generic")}) as proxy:
        proxy.wake()
        with (
            requests.get(proxy.url("/events"), stream=True, timeout=60) as tab,
            connect(f"ws://127.0.0.1:{proxy.port}/ws") as idle,
        ):
            heartbeat = tab.iter_content(None)
            assert next(heartbeat) == b"data: 0\n\n"
            idle.send("hello")
            assert idle.recv() == "hello"
            began = time.monotonic()
            proxy.process.terminate()
            with pytest.raises(ConnectionClosed) as closed:
                idle.recv(timeout=20)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            assert proxy.process.wait(15) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 9
        assert " ERROR " not in proxy.log
        assert "Traceback" not in proxy.log


def test_a_tab_stays_as_long_as_its_work_and_a_websocket_as_long_as_it_speaks(
    tmp_path: Path,
) -> None:
    with running(tmp_path, gpu={"main": gpu(preset="generic")}) as proxy:
        proxy.wake()
        with (
            requests.get(proxy.url("/events"), stream=True, timeout=60) as tab,
            _post_events(proxy, 1) as work,
            connect(f"ws://127.0.0.1:{proxy.port}/ws") as talking,
        ):
            heartbeat, generation = tab.iter_content(None), work.iter_content(None)
            assert next(heartbeat) == b"data: 0\n\n"
            assert next(generation) == b"data: 0\n\n"
            proxy.process.terminate()
            until_at = time.monotonic() + 7
            while time.monotonic() < until_at:
                talking.send("hello")
                assert talking.recv(timeout=5) == "hello"
                time.sleep(0.5)
            _next(proxy)
            _next(proxy)
            assert next(heartbeat).startswith(b"data: 1")
            talking.send("still there")
            assert talking.recv(timeout=5) == "still there"
        assert proxy.process.wait(15) in (0, -signal.SIGTERM)
