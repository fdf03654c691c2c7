"""A cloud that takes a spot instance back: real proxy, agent and local instance, and a metadata
service that announces it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.proxy.running import RunningProxy, gpu, running
from tests.support.metadata import MetadataService
from tests.support.waiting import until

NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}
USE = {"Content-Type": "application/json"}


@pytest.fixture
def metadata() -> Iterator[MetadataService]:
    with MetadataService("aws") as service:
        yield service


@pytest.fixture
def spot(tmp_path: Path, metadata: MetadataService) -> Iterator[RunningProxy]:
    """A GPU that is ready, on an instance that watches for notices."""
    instance = tmp_path / "state" / "instances" / "default" / "main"
    instance.mkdir(parents=True)
    (instance / "node.toml").write_text(f'cloud = "aws"\nmetadata_url = "{metadata.url}"\n')
    results = {"activity": "keeps_on", "methods": ["GET"], "path": "^/events"}
    with running(tmp_path, gpu={"main": gpu(preset="generic", rules=[results])}) as proxy:
        proxy.wake()
        yield proxy


def interrupt(
    spot: RunningProxy, metadata: MetadataService, seconds: float = 120.0, *, stays: bool = False
) -> None:
    """Have the cloud announce it, and wait until nothing new is forwarded; ``stays``: the next boot
    sees the same notice."""
    metadata.announce(seconds)
    until(lambda: spot.snapshot().phase.value == "draining", 30, "the drain")
    if not stays:
        metadata.notice = None
    until(lambda: verdict(spot) == 503, 10, "that the proxy knows it")


def verdict(spot: RunningProxy) -> int:
    """What becomes of a visitor's navigation."""
    return requests.get(spot.url("/echo"), headers=NAVIGATION, timeout=10).status_code


def metrics(spot: RunningProxy) -> str:
    return requests.get(spot.url("/_qwenctl/metrics"), timeout=10).text


def starts(spot: RunningProxy) -> int:
    log = spot.directory / "state" / "instances" / "default" / "main" / "starts.log"
    return len(log.read_text().splitlines())


def transitions(spot: RunningProxy) -> list[tuple[str, str]]:
    return [
        (event.fields["to"], event.fields["cause"])
        for event in spot.store.events("main", 1000)
        if event.kind == "transition"
    ]


class Answer(threading.Thread):
    """A request of its own thread."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(daemon=True)
        self._url, self._options = url, options
        self.answer: requests.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = requests.post(self._url, timeout=90, **self._options)

    def result(self) -> requests.Response:
        self.join(90)
        assert self.answer is not None
        return self.answer


def test_running_work_is_finished_and_new_work_waits_for_the_next_boot(
    spot: RunningProxy, metadata: MetadataService
) -> None:
    node = f"http://127.0.0.1:{spot.node_port()}"
    with requests.post(
        spot.url("/events?count=6"), headers=USE, data="{}", stream=True, timeout=60
    ) as long:
        lines = long.iter_lines()
        assert next(lines) == b"data: 0"
        interrupt(spot, metadata)
        held = Answer(spot.url("/made"), headers=USE, data='{"new": true}')
        until(lambda: 'qwenctl_held_requests{gpu="main"} 1.0' in metrics(spot), 10, "the hold")

        # Nothing stops under running work, however long after the drain time.
        threading.Event().wait(spot.settings["gpu"]["main"]["timing"]["drain"] + 2)
        assert spot.snapshot().phase.value == "draining"
        assert not spot.journal_of("/made")
        status = requests.get(spot.url("/_qwenctl/api/status"), timeout=10).json()
        assert status["interruption"]["action"] == "stop"
        assert 0 < status["interruption"]["seconds_left"] <= 120
        assert requests.get(spot.url("/anything"), timeout=10).status_code == 200  # passive

        for _ in range(6):
            requests.get(f"{node}/next", timeout=10)
        rest = [line for line in lines if line]
        assert rest == [f"data: {n}".encode() for n in range(1, 6)]

    answer = held.result()
    assert answer.status_code == 200
    assert answer.json()["size"] == len('{"new": true}')
    assert starts(spot) == 2
    assert [to for to, _ in transitions(spot)[-7:]] == [
        *("draining", "stopping", "off", "starting", "booting", "loading", "ready")
    ]
    assert [to for to, _ in transitions(spot)].count("ready") == 2  # demand did not bring it back
    causes = dict(transitions(spot)[-7:-5])
    assert causes == {"draining": "spot_interruption", "stopping": "spot_interruption"}
    events = [event for event in spot.store.events("main", 1000) if event.kind == "interruption"]
    assert len(events) == 1
    assert float(events[0].fields["ends"]) / 1000 > events[0].time + 60
    failure = spot.snapshot().failure
    assert failure is not None  # remembered for the next one, and shown nowhere while it is ready
    assert failure.attempts == 1


def test_what_belongs_to_running_work_is_forwarded_and_finished(
    spot: RunningProxy, metadata: MetadataService
) -> None:
    """The stream of an answer, opened after the request for it was accepted and done."""
    node = f"http://127.0.0.1:{spot.node_port()}"
    drain = spot.settings["gpu"]["main"]["timing"]["drain"]
    with requests.post(
        spot.url("/events?count=1"), headers=USE, data="{}", stream=True, timeout=60
    ) as first:
        assert next(first.iter_lines()) == b"data: 0"
        interrupt(spot, metadata)
        result = requests.get(spot.url("/events?count=3"), stream=True, timeout=60)
        assert result.status_code == 200
        lines = result.iter_lines()
        assert next(lines) == b"data: 0"
    with result:
        assert any(lease.kind == "inflight" for lease in spot.snapshot().leases)
        threading.Event().wait(drain + 2)
        assert spot.snapshot().phase.value == "draining"
        with contextlib.suppress(requests.ConnectionError):  # once all is said, it is stopped
            for _ in range(6):
                requests.get(f"{node}/next", timeout=10)
        assert [line for line in lines if line] == [b"data: 1", b"data: 2"]
    until(lambda: ("stopping", "spot_interruption") in transitions(spot), 30, "the stop")


def test_a_notice_that_stays_does_not_stop_the_next_boot(
    spot: RunningProxy, metadata: MetadataService
) -> None:
    interrupt(spot, metadata, stays=True)
    assert Answer(spot.url("/made"), headers=USE, data="{}").result().status_code == 200
    asked = len(metadata.asked)
    metadata.wait_asked(asked + 2, 60)
    assert spot.snapshot().phase.value == "ready"
    assert starts(spot) == 2
    assert len([e for e in spot.store.events("main", 1000) if e.kind == "interruption"]) == 1


def test_an_instance_that_goes_before_we_stop_it_is_started_again_at_once(
    spot: RunningProxy, metadata: MetadataService
) -> None:
    with requests.post(
        spot.url("/events"), headers=USE, data="{}", stream=True, timeout=60
    ) as long:
        assert next(long.iter_lines()) == b"data: 0"
        interrupt(spot, metadata, seconds=1)
        held = Answer(spot.url("/made"), headers=USE, data="{}")
        record = spot.directory / "state" / "instances" / "default" / "main" / "status.json"
        os.kill(json.loads(record.read_text())["pid"], signal.SIGTERM)  # the cloud takes it
        assert held.result().status_code == 200
    assert starts(spot) == 2
    assert not [to for to, _ in transitions(spot) if to == "failed"]
    [first, *_] = [cause for to, cause in transitions(spot) if to in ("stopping", "off")]
    assert first == "spot_interruption"


def test_visitors_are_told(spot: RunningProxy, metadata: MetadataService) -> None:
    with requests.post(
        spot.url("/events"), headers=USE, data="{}", stream=True, timeout=60
    ) as long:
        assert next(long.iter_lines()) == b"data: 0"
        interrupt(spot, metadata)
        page = requests.get(spot.url("/"), headers=NAVIGATION, timeout=10)
        assert page.status_code == 503
        assert "The cloud takes this machine back" in page.text
        chinese = {**NAVIGATION, "Accept-Language": "zh-CN"}
        assert (
            "云平台正在收回这台机器"
            in requests.get(spot.url("/"), headers=chinese, timeout=10).text
        )
        stream = requests.get(spot.url("/_qwenctl/api/events"), stream=True, timeout=30)
        with stream:
            data = next(line for line in stream.iter_lines() if line.startswith(b"data:"))
        status = json.loads(data[5:])
        assert status["interruption"]["action"] == "stop"
        assert status["steps"][0]["state"] == "active"
