"""The watch for spot interruption notices, against a real metadata service of both clouds."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gpu_node.machine.interruption import InterruptionWatch, Notice
from gpu_node.machine.metadata import CloudName, Metadata, NoMetadata
from tests.support.metadata import PATHS, MetadataService, stamp
from tests.support.net import free_port

SOON = 0.02
CLOUDS: list[CloudName] = ["aws", "aliyun"]


class Watching:
    def __init__(self, cloud: CloudName, url: str, **options: Any) -> None:
        self.notices: queue.Queue[Notice] = queue.Queue()
        self.watch = InterruptionWatch(cloud, self.notices.put, url=url, interval=SOON, **options)
        self.watch.start()

    def next(self) -> Notice:
        return self.notices.get(timeout=20)


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> CloudName:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def service(cloud: CloudName) -> Iterator[MetadataService]:
    with MetadataService(cloud) as service:
        yield service


@pytest.fixture
def watching(cloud: CloudName, service: MetadataService) -> Iterator[Watching]:
    with ExitStack() as stack:
        watching = Watching(cloud, service.url)
        stack.callback(watching.watch.stop)
        yield watching


def test_nothing_to_say_is_no_notice_and_no_trouble(
    cloud: CloudName,
    service: MetadataService,
    watching: Watching,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.wait_asked(5)
    assert service.asked[:3] == [
        ("PUT", "/latest/api/token", 200),
        ("GET", PATHS[cloud], 404),
        ("GET", PATHS[cloud], 404),
    ]
    assert watching.notices.empty()
    assert not caplog.records


def test_a_notice_is_told_once_with_its_time(
    cloud: CloudName, service: MetadataService, watching: Watching
) -> None:
    service.wait_asked(2)
    service.announce(120)
    notice = watching.next()
    assert notice.action == ("stop" if cloud == "aws" else "reclaim")
    assert 60 < notice.at - time.monotonic() <= 121
    service.wait_asked(len(service.asked) + 3)
    assert watching.notices.empty()


def test_a_notice_that_changes_is_told_again(service: MetadataService, watching: Watching) -> None:
    service.announce(300)
    first = watching.next()
    service.announce(100)
    assert watching.next().at < first.at - 100


def test_the_services_clock_counts(service: MetadataService, watching: Watching) -> None:
    service.skew = 8 * 3600.0  # a machine that boots with local time in its clock
    service.announce(120)
    assert 60 < watching.next().at - time.monotonic() <= 121


@pytest.mark.parametrize("skew", [0.0, 8 * 3600.0, -8 * 3600.0])
def test_a_notice_whose_time_is_over_is_ignored(
    cloud: CloudName, service: MetadataService, caplog: pytest.LogCaptureFixture, skew: float
) -> None:
    """A stopped spot instance that was started again may still see its last one."""
    caplog.set_level(logging.INFO)
    service.skew = skew
    service.announce(-60)
    watching = Watching(cloud, service.url)
    service.wait_asked(5)
    assert watching.notices.empty()
    service.announce(-5)  # the clouds are late at times
    assert watching.next().at < time.monotonic()
    service.announce(-90)
    service.wait_asked(len(service.asked) + 3)
    service.announce(120)
    assert watching.next().at > time.monotonic()
    watching.watch.stop()
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2
    assert "is over" in caplog.text


def test_a_notice_told_in_an_earlier_boot_is_ignored(
    cloud: CloudName, service: MetadataService, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its instance was stopped, as announced, and started again before the time that it names."""
    caplog.set_level(logging.INFO)
    file = tmp_path / "notice.json"
    service.announce(120)
    for boot, told in (("one", True), ("one", True), ("two", False), ("three", False)):
        watching = Watching(cloud, service.url, boot_id=boot, told_file=file)
        if told:  # also to an agent that starts anew in the same boot
            watching.next()
        service.wait_asked(len(service.asked) + 3)
        assert watching.notices.empty()
        watching.watch.stop()
        watching.watch._thread.join(20)
    assert [record.getMessage().count("earlier boot") for record in caplog.records] == [1, 1]
    watching = Watching(cloud, service.url, boot_id="four", told_file=file)
    service.announce(200)  # and this one is new
    watching.next()
    watching.watch.stop()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"boot_id": 1}', "\x00"])
def test_what_was_told_before_cannot_be_read(
    cloud: CloudName, service: MetadataService, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "notice.json"
    file.write_text(content)
    service.announce(120)
    for path in (file, tmp_path / "nowhere" / "notice.json"):
        watching = Watching(cloud, service.url, boot_id="one", told_file=path)
        watching.next()
        watching.watch.stop()


def test_a_token_that_has_run_out_is_renewed(
    service: MetadataService, watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    service.wait_asked(3)
    service.token += 1  # the one handed out counts no more
    service.announce(120)
    watching.next()
    refused = [status for _, _, status in service.asked if status in (401, 403)]
    assert len(refused) == 1
    assert not caplog.records


def test_without_a_token_nothing_is_said(cloud: CloudName, service: MetadataService) -> None:
    service.announce(120)
    metadata = Metadata(cloud, service.url)
    path = PATHS[cloud].removeprefix("/latest/meta-data/")
    metadata._token = "another"
    assert metadata.get(path) is not None  # the service refuses, a token is taken
    methods = [(method, status) for method, _, status in service.asked]
    assert methods == [("GET", 401 if cloud == "aws" else 403), ("PUT", 200), ("GET", 200)]


@pytest.mark.parametrize(
    "garbage",
    [
        "<html>captive portal</html>",
        "",
        "[]",
        '{"action": "stop"}',
        '{"action": "stop", "time": 12}',
        '{"action": "stop", "time": "tomorrow"}',
        "\x00\xff" * 9000,
    ],
)
def test_garbage_is_no_notice_and_is_logged_once(
    service: MetadataService, watching: Watching, caplog: pytest.LogCaptureFixture, garbage: str
) -> None:
    service.notice = garbage
    service.wait_asked(len(service.asked) + 4)
    assert watching.notices.empty()
    service.announce(120)  # and it goes on
    watching.next()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be read" in caplog.text


def test_trouble_of_the_service_is_logged_once(
    service: MetadataService, watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    service.status, service.notice = 500, "broken"
    service.wait_asked(len(service.asked) + 9)
    service.status = 200
    service.announce(120)
    watching.next()
    assert len(caplog.records) == 1
    assert "HTTP 500" in caplog.text


def test_a_service_that_hangs_is_given_up_and_asked_again(
    service: MetadataService, watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    service.hangs = True
    deadline = time.monotonic() + 30
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "Timeout" in caplog.text
    service.hangs = False
    service.announce(120)
    watching.next()


def test_no_service_at_all(cloud: CloudName, caplog: pytest.LogCaptureFixture) -> None:
    watching = Watching(cloud, f"http://127.0.0.1:{free_port()}")
    deadline = time.monotonic() + 30
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.05)
    watching.watch.stop()
    watching.watch._thread.join(20)
    assert not watching.watch._thread.is_alive()
    assert len(caplog.records) == 1


def test_a_redirect_is_not_followed() -> None:
    with MetadataService("aws") as service:
        service.status, service.notice = 302, stamp(time.time())
        with pytest.raises(NoMetadata, match="302"):
            Metadata("aws", service.url).get("spot/instance-action")
