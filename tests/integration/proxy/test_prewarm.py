"""Schedules executed by real proxy processes: two replicas, one killed, a person's `down`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests

from qwenctl.core.events import Event
from qwenctl.core.phase import Phase
from tests.support.deployment import Deployment
from tests.support.valkey_server import ValkeyServer

ALWAYS = {"cron": "0 0 1 1 *", "timezone": "UTC", "duration": "400d"}
"""A window that is always open: a year's last one ends after the next has opened."""

Deploy = Callable[..., Deployment]
_numbers = count(1)


@pytest.fixture
def deploy(tmp_path: Path, valkey: ValkeyServer) -> Iterator[Deploy]:
    made: list[Deployment] = []

    def make(**table: Any) -> Deployment:
        name = f"prewarm-{next(_numbers)}"
        gpus = {"main": table}
        made.append(
            Deployment(tmp_path / name, name=name, redis_url=valkey.url, replicas=2, gpus=gpus)
        )
        return made[-1]

    yield make
    for deployment in made:
        deployment.close()


def is_lease(name: str) -> Callable[[Event], bool]:
    return lambda event: event.kind == "lease" and event.fields["name"] == name


def test_the_proxies_wake_it_once_and_down_lasts(deploy: Deploy) -> None:
    mark = {"name": "mark", **ALWAYS}  # after the other one in each pass of a scheduler
    deployment = deploy(wake_on="never", prewarm=[{"name": "all", **ALWAYS}, mark])
    deployment.start()
    deployment.wait_phase(Phase.READY)
    first, _ = deployment.proxies
    # The WebUI, nobody's wake. A proxy hears a moment after the store that it is ready.
    deadline = time.monotonic() + 30
    while (answer := requests.get(first.url, timeout=20)).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer.status_code == 200

    # A proxy that dies and comes back inside the window changes nothing.
    first.kill()
    first.start().wait_ready()
    deployment.wait_phase(Phase.READY)
    events = deployment.store.events("main", 1000)
    assert sum(map(is_lease("prewarm:all"), events)) == 1
    assert len(deployment.instance().starts) == 1

    deployment.store.release("main", actor="ada", reason="home")
    deployment.wait_phase(Phase.OFF)
    # Nor does it put back what a person gave up. That its scheduler has made a pass is seen by the
    # other schedule, which is made to look new.
    state = deployment.store.keys("main")[0]
    deployment.store._redis.hdel(state, "window:prewarm:mark")
    after = deployment.last_event()
    for proxy in deployment.proxies:
        proxy.kill()
    first.start().wait_ready()
    deployment.wait_event(is_lease("prewarm:mark"), after=after)
    held = [lease.name for lease in deployment.store.snapshot("main").leases]
    assert "prewarm:mark" in held
    assert "prewarm:all" not in held


def test_off_hours_keep_it_off_and_the_page_says_so(deploy: Deploy) -> None:
    night = {"name": "night", **ALWAYS}
    deployment = deploy(off_hours=[night], prewarm=[{"name": "all", **ALWAYS}])
    deployment.start()
    deployment.wait_event(lambda event: event.kind == "block")
    proxy = deployment.proxies[0]
    refused = proxy.wake()
    assert refused.status_code == 423
    assert "off-hours" in refused.text
    page = requests.get(proxy.url, headers={"Accept": "text/html"}, timeout=20).text
    assert "It rests outside its hours." in page
    assert "for another" in page
    assert "schedule night" in page
    assert deployment.store.unblock("main", actor="ada") == ["off-hours:night"]
    deployment.wait_phase(Phase.READY)  # the prewarm schedule has held its lease all the time
