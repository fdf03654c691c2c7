"""What is in use stays on, whatever the idle timeout says, and what is only open does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.deployment import Deployment


@contextmanager
def generation(deployment: Deployment, seconds: float) -> Iterator[Callable[[], str]]:
    """A generation under way; the call gives what the client got, or an empty text if it was cut."""
    url = f"{deployment.proxies[0].url}/stream?seconds={seconds}"
    answer = requests.post(url, json={}, stream=True, timeout=60)
    assert answer.status_code == 200
    chunks = answer.iter_content(None)
    assert next(chunks)

    def rest() -> str:
        try:
            return b"".join(chunks).decode()
        except requests.exceptions.ChunkedEncodingError:
            return ""

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(rest)
        yield future.result


@pytest.mark.slow
def test_a_stream_longer_than_the_idle_timeout_is_not_cut(deploy: Deploy) -> None:
    deployment = deploy(replicas=2).start()
    after = deployment.last_event()
    with generation(deployment, 12.0) as rest:
        assert rest().endswith("end\n"), deployment.history()
    ready = deployment.wait_transition(Phase.READY, after=after)
    draining = deployment.wait_transition(Phase.DRAINING, after=ready.id)
    assert draining.time - ready.time >= 12.0 + 2.0 - 0.5, deployment.history()
    deployment.wait_phase(Phase.OFF)
    deployment.instance().assert_nothing_cut()


@pytest.mark.slow
def test_an_open_tab_does_not_keep_it_on(deploy: Deploy) -> None:
    deployment = deploy(gpus={"main": {"preset": "gradio"}}).start()
    assert deployment.proxies[0].post("/gradio_api/run/predict").status_code == 200
    url = f"{deployment.proxies[0].url}/gradio_api/heartbeat/abc"
    tab = requests.get(url, stream=True, timeout=60)
    assert next(tab.iter_lines()) == b"data: ALIVE"
    ready = deployment.wait_transition(Phase.READY)
    draining = deployment.wait_transition(Phase.DRAINING, after=ready.id, timeout=20)
    assert draining.time - ready.time < 15.0  # the tab is open for a minute
    deployment.wait_phase(Phase.OFF, timeout=10)


@pytest.mark.slow
def test_down_drains_and_down_now_cuts(deploy: Deploy) -> None:
    deployment = deploy(gpus={"main": {"idle_timeout": 60}}).start()
    store, instance = deployment.store, deployment.instance()
    with generation(deployment, 5.0) as rest:
        store.release("main", actor="ann", reason="down")
        assert rest().endswith("end\n"), deployment.history()
    deployment.wait_phase(Phase.OFF, timeout=10)
    instance.assert_nothing_cut()

    after = deployment.last_event()
    with generation(deployment, 20.0) as rest:
        store.release("main", actor="ann", reason="down --now", force_stop=True)
        assert rest() == ""
    off = deployment.wait_transition(Phase.OFF, after=after, timeout=5)
    down = next(e for e in store.events("main", after=after) if e.kind == "down")
    assert off.time - down.time < 3.0
    assert (len(instance.starts), len(instance.stops)) == (2, 2)


@pytest.mark.slow
def test_a_block_drains_and_refuses_until_it_is_lifted(deploy: Deploy) -> None:
    deployment = deploy(replicas=2, gpus={"main": {"idle_timeout": 60}}).start()
    store, instance = deployment.store, deployment.instance()
    with generation(deployment, 5.0) as rest:
        store.block("main", "maintenance:ann", None, reason="new disk", actor="ann")
        assert rest().endswith("end\n"), deployment.history()
    deployment.wait_phase(Phase.OFF, timeout=10)
    instance.assert_nothing_cut()
    for proxy in deployment.proxies:
        assert proxy.wake().status_code == 423
        refused = proxy.post(timeout=5)
        assert refused.status_code == 503
        assert refused.json()["code"] == "blocked"
        assert "new disk" in refused.json()["detail"]
    assert len(instance.starts) == 1
    store.unblock("main", actor="ann")
    assert deployment.proxies[1].post().status_code == 200
    assert len(instance.starts) == 2
