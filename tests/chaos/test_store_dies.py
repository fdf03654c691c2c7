"""The store dies, loses everything, or hangs: forwarding goes on, nothing is started or stopped."""

from __future__ import annotations

import fcntl
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.deployment import Deployment, processes_of
from tests.support.valkey_server import ValkeyServer

GPU = {"idle_timeout": 3}


def embedded_servers(deployment: Deployment) -> list[psutil.Process]:
    folder = deployment.config.state_path / "valkey"
    return [p for p in processes_of(folder) if "valkey-server" in p.name()]


@contextmanager
def streaming(deployment: Deployment, seconds: float) -> Iterator[Callable[[], str]]:
    """A streamed answer in flight, longer than everything that happens meanwhile."""
    url = f"{deployment.proxies[0].url}/stream?seconds={seconds}"
    answer = requests.post(url, json={}, stream=True, timeout=60)
    assert answer.status_code == 200
    lines = answer.iter_lines()
    assert next(lines) == b"word"

    def rest() -> str:
        return (b"\n".join(lines) + b"\n").decode()

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(rest)
        yield future.result


def assert_nothing_issued(deployment: Deployment) -> None:
    instance = deployment.instance()
    assert (len(instance.starts), len(instance.stops)) == (1, 0), deployment.history()


@pytest.mark.slow
def test_kill_9_of_the_embedded_server_keeps_the_state(deploy: Deploy) -> None:
    deployment = deploy(replicas=2, redis_url="", gpus={"main": GPU}).start()
    assert deployment.proxies[0].post().status_code == 200
    before = deployment.store.snapshot("main")
    with streaming(deployment, 9.0) as rest:
        for _ in range(2):
            (server,) = embedded_servers(deployment)
            server.kill()
            for proxy in deployment.proxies:
                for _ in range(5):
                    assert proxy.post(timeout=5).status_code == 200
            deployment.wait_phase(Phase.READY, timeout=5)
            (again,) = embedded_servers(deployment)
            assert again.pid != server.pid
        assert rest().endswith("end\n")
    after = deployment.store.snapshot("main")
    assert after.phase is Phase.READY
    assert after.start_seq == before.start_seq
    assert after.node["boot_id"] == before.node["boot_id"]
    assert_nothing_issued(deployment)
    deployment.wait_phase(Phase.OFF, timeout=20)
    deployment.instance().assert_nothing_cut()


@pytest.mark.slow
@pytest.mark.parametrize("others", [True, False], ids=["new-requests", "only-the-stream"])
def test_a_store_that_has_lost_everything_is_rebuilt_from_what_is_seen(
    deploy: Deploy, others: bool
) -> None:
    gpu = {"idle_timeout": 1}
    deployment = deploy(replicas=2, redis_url="", gpus={"main": gpu}).start()
    assert deployment.proxies[0].post().status_code == 200
    with streaming(deployment, 12.0) as rest:
        wipe(deployment)
        # While the state is rebuilt, new requests may wait; none is refused.
        for proxy in deployment.proxies if others else []:
            assert proxy.post(timeout=10).status_code == 200
        assert deployment.wait_phase(Phase.READY, timeout=8).start_seq == 0
        assert rest().endswith("end\n"), deployment.history()
    assert_nothing_issued(deployment)
    deployment.wait_phase(Phase.OFF, timeout=20)
    assert len(deployment.instance().stops) == 1
    deployment.instance().assert_nothing_cut()


def wipe(deployment: Deployment) -> None:
    """Kill the server and delete its files before anybody can start it again."""
    folder: Path = deployment.config.state_path / "valkey"
    with (folder / "start.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mine = list(processes_of(folder)) + [
            p for p in processes_of(deployment.config.state_path) if "embedded" in str(p.cmdline())
        ]
        for process in mine:
            process.kill()
        psutil.wait_procs(mine, timeout=5)
        shutil.rmtree(folder / "appendonlydir")


@pytest.mark.slow
def test_a_frozen_store_stops_nothing(deploy: Deploy) -> None:
    with ValkeyServer(appendonly="yes") as server:
        deployment = deploy(replicas=2, redis_url=server.url, gpus={"main": GPU}).start()
        assert deployment.proxies[0].post().status_code == 200
        with streaming(deployment, 8.0) as rest:
            server.process.send_signal(signal.SIGSTOP)
            try:
                frozen_at = time.monotonic()
                while time.monotonic() - frozen_at < 5.0:
                    for proxy in deployment.proxies:
                        assert proxy.post(timeout=3).status_code == 200
            finally:
                server.process.send_signal(signal.SIGCONT)
            assert rest().endswith("end\n"), deployment.history()
        assert deployment.store.snapshot("main").phase is Phase.READY, deployment.history()
        assert_nothing_issued(deployment)
        deployment.wait_phase(Phase.OFF, timeout=20)
        deployment.instance().assert_nothing_cut()
        for proxy in deployment.proxies:
            proxy.kill()
        deployment.store.close()
