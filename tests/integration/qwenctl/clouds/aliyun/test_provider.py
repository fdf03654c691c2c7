"""The Alibaba Cloud provider and the real SDK over HTTP against an endpoint that checks signatures."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qwenctl.clouds.aliyun.provider import AliyunProvider
from qwenctl.clouds.base import Conflict, Denied, NoCapacity, NotFound, Provider
from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError
from tests.support.fake_ecs import Cloud, FakeEcs
from tests.support.fake_ecs.client import INSTANCE, provider_for
from tests.unit.qwenctl.clouds.contract import ProviderContract, wait_for


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


class TestContract(ProviderContract):
    timeout = 30.0

    @pytest.fixture
    def provider(self, fake: FakeEcs) -> Provider:
        fake.cloud.add(INSTANCE, start_seconds=0.3, stop_seconds=1.5)
        self.fake = fake
        provider = provider_for(fake)
        provider.observe_interval = 0.1
        return provider

    def count_starts(self, provider: Provider) -> int:
        return self.fake.cloud.instances[INSTANCE].starts

    def count_stops(self, provider: Provider) -> int:
        return self.fake.cloud.instances[INSTANCE].stops


# Starting and stopping


def test_two_starts_that_both_saw_it_stopped_end_with_one(fake: FakeEcs) -> None:
    instance = fake.cloud.add(start_seconds=30)
    both_looked = threading.Barrier(2)

    class Waits(AliyunProvider):
        def _read(self, deadline: float) -> Any:
            seen = super()._read(deadline)
            if not met.is_set():
                both_looked.wait(20)
            met.set()
            return seen

    met = threading.Event()
    providers = [provider_for(fake), provider_for(fake)]
    for provider in providers:
        provider.__class__ = Waits
    with ThreadPoolExecutor(2) as pool:
        answers = [call.result() for call in [pool.submit(p.start) for p in providers]]
    assert fake.received["StartInstance"] == 2
    assert instance.starts == 1
    assert sorted(bool(answer.request_id) for answer in answers) == [False, True]


def test_a_stop_ends_the_billing(fake: FakeEcs) -> None:
    instance = fake.cloud.add(status="Running", stop_seconds=0)
    provider = provider_for(fake)
    assert provider.stop().request_id
    assert wait_for(provider, Observed.STOPPED).reason == ""
    assert [call["StoppedMode"] for call in fake.calls_of("StopInstance")] == ["StopCharging"]
    assert instance.stopped_mode == "StopCharging"


def test_an_instance_stopped_by_somebody_in_standard_mode_is_explained(fake: FakeEcs) -> None:
    instance = fake.cloud.add(stopped_mode="KeepCharging", start_seconds=0)
    provider = provider_for(fake)
    assert "billed on: it was stopped in standard mode" in provider.describe().reason
    provider.start()  # it can be stopped for free the next time
    assert wait_for(provider, Observed.RUNNING).reason == ""
    assert instance.starts == 1


KEEPS_CHARGING: list[tuple[dict[str, Any], str]] = [
    ({"charge_type": "PrePaid"}, "subscription"),
    ({"type": "ecs.gn5-c4g1.xlarge"}, "local disks"),
    ({"type": "ecs.i2.xlarge"}, "local disks"),
    ({"local_disks": 2}, "local disks"),
    ({"vpc": False}, "classic network"),
]


@pytest.mark.parametrize(("fields", "word"), KEEPS_CHARGING)
def test_what_cannot_be_stopped_for_free_is_not_started(
    fake: FakeEcs, fields: dict[str, Any], word: str
) -> None:
    instance = fake.cloud.add(**fields)
    with pytest.raises(Denied, match=f"would not end its billing: .*{word}.*keep_charging"):
        provider_for(fake).start()
    assert fake.received["StartInstance"] == 0
    provider_for(fake, keep_charging=True).start()
    assert instance.starts == 1


@pytest.mark.parametrize(("fields", "word"), KEEPS_CHARGING)
def test_what_is_found_running_is_stopped_and_its_billing_explained(
    fake: FakeEcs, fields: dict[str, Any], word: str
) -> None:
    instance = fake.cloud.add(status="Running", stop_seconds=0, **fields)
    provider = provider_for(fake)
    provider.stop()
    reason = wait_for(provider, Observed.STOPPED).reason
    assert "stopped and billed on" in reason
    assert word in reason
    assert instance.stops == 1
    assert provider_for(fake, keep_charging=True).describe().reason == ""


@pytest.mark.parametrize(
    "type_", ["ecs.gn5i-c4g1.xlarge", "ecs.gn7i-c8g1.2xlarge", "ecs.gn6e-c12g1.3xlarge"]
)
def test_gpu_families_without_local_disks_are_started(fake: FakeEcs, type_: str) -> None:
    instance = fake.cloud.add(type=type_)
    provider_for(fake).start()
    assert instance.starts == 1


def test_no_stock_is_no_capacity_until_there_is_some(fake: FakeEcs) -> None:
    instance = fake.cloud.add(in_stock=False)
    provider = provider_for(fake)
    with pytest.raises(
        NoCapacity, match=r"no such machine free.*OperationDenied.NoStock, request "
    ) as error:
        provider.start()
    assert error.value.request_id
    instance.in_stock = True
    provider.start()
    assert instance.starts == 1


def test_a_stop_while_starting_is_conflict(fake: FakeEcs) -> None:
    fake.cloud.add(start_seconds=60)
    provider = provider_for(fake)
    provider.start()
    with pytest.raises(Conflict):
        provider.stop()


def test_an_instance_that_is_not_there(fake: FakeEcs) -> None:
    provider = provider_for(fake, instance_id="i-bp1other")
    seen = provider.describe()
    assert seen.state is Observed.ABSENT
    assert "cn-hangzhou" in seen.reason
    for call in (provider.start, provider.stop):
        with pytest.raises(NotFound, match="i-bp1other"):
            call()
    fake.fail("DescribeInstances", "error", code="InvalidInstanceId.NotFound", status=404)
    assert provider.describe().state is Observed.ABSENT


# What it says


@pytest.mark.parametrize(
    ("choice", "fields", "address"),
    [
        ("auto", {"eip": "47.1.1.1"}, "192.168.7.10"),
        ("auto", {"private_ip": "", "eip": "47.1.1.1"}, "47.1.1.1"),
        ("private", {"eip": "47.1.1.1"}, "192.168.7.10"),
        ("eip", {"eip": "47.1.1.1"}, "47.1.1.1"),
        ("public", {"public_ip": "47.2.2.2"}, "47.2.2.2"),
        ("public", {"eip": "47.1.1.1"}, "47.1.1.1"),
        ("auto", {"vpc": False}, "192.168.7.10"),
    ],
)
def test_the_address_is_the_chosen_one(
    fake: FakeEcs, choice: str, fields: dict[str, Any], address: str
) -> None:
    instance = fake.cloud.add(status="Running", **fields)
    seen = provider_for(fake, address=choice).describe()
    assert (seen.address, seen.reason) == (address, "")
    instance.status = "Starting"
    assert provider_for(fake, address=choice).describe().address == ""


@pytest.mark.parametrize("choice", ["public", "eip"])
def test_an_address_that_is_not_there_is_said(fake: FakeEcs, choice: str) -> None:
    fake.cloud.add(status="Running")
    seen = provider_for(fake, address=choice).describe()
    assert seen.state is Observed.RUNNING
    assert (seen.address, seen.reason) == ("", f"the instance has no {choice} address")


def test_the_public_address_changes_with_each_boot(fake: FakeEcs) -> None:
    fake.cloud.add(has_public_ip=True, start_seconds=0, stop_seconds=0)
    provider = provider_for(fake, address="public")
    seen = set()
    for _ in range(2):
        provider.start()
        seen.add(wait_for(provider, Observed.RUNNING, 30).address)
        provider.stop()
        wait_for(provider, Observed.STOPPED, 30)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("Recycling", "reclaiming this spot instance"),
        ("financial", "overdue payment"),
        ("security", "security reasons"),
        ("something-new", "locked: something-new"),
    ],
)
def test_locks_are_explained(fake: FakeEcs, lock: str, words: str) -> None:
    fake.cloud.add(status="Running", locks=[lock])
    assert words in provider_for(fake).describe().reason


def test_every_state_of_the_api_is_known(fake: FakeEcs) -> None:
    instance = fake.cloud.add()
    seen = {}
    for status in ("Pending", "Starting", "Running", "Stopping", "Stopped", "Unheard"):
        instance.status = status
        seen[status] = provider_for(fake).describe().state.value
    assert seen == {
        "Pending": "starting",
        "Starting": "starting",
        "Running": "running",
        "Stopping": "stopping",
        "Stopped": "stopped",
        "Unheard": "unknown",
    }


def test_many_instances_take_one_call_a_hundred() -> None:
    with FakeEcs(Cloud()) as fake:
        ids = [f"i-bp1many{number:04}" for number in range(230)]
        for id_ in ids[:-1]:
            fake.cloud.add(id_, status="Running")
        provider = provider_for(fake)
        seen = provider._ecs.describe(ids, time.monotonic() + 60)
        assert fake.received["DescribeInstances"] == 3
        assert [seen[id_].state for id_ in ids[:-1]] == [Observed.RUNNING] * 229
        assert ids[-1] not in seen


# Configuration


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"instance_id": "i-bp1x"}, r"gpu\.main\.aliyun\.region is missing"),
        ({"region": "cn-hangzhou"}, r"gpu\.main\.aliyun\.instance_id is missing"),
        (
            {"region": "cn-hangzhou", "instance_id": "i-bp1x", "protocol": "http"},
            "only for an endpoint on this machine",
        ),
        (
            {
                "region": "cn-hangzhou",
                "instance_id": "i-bp1x",
                "protocol": "http",
                "endpoint": "ecs-vpc.cn-hangzhou.aliyuncs.com:80",
            },
            "only for an endpoint on this machine",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_one_sentence(
    table: dict[str, str], words: str
) -> None:
    config = Config.model_validate({"gpu": {"main": {"provider": "aliyun", "aliyun": table}}})
    with pytest.raises(ConfigError, match=words):
        make_provider("main", config.gpu["main"], config)


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("cn-hangzhou", "ecs-cn-hangzhou.aliyuncs.com"),
        ("cn-wulanchabu", "ecs.cn-wulanchabu.aliyuncs.com"),
        ("xx-new-region-9", "ecs.xx-new-region-9.aliyuncs.com"),
    ],
)
def test_the_endpoint_is_the_regions(region: str, host: str) -> None:
    table = {"region": region, "instance_id": "i-bp1x"}
    config = Config.model_validate({"gpu": {"main": {"provider": "aliyun", "aliyun": table}}})
    provider = make_provider("main", config.gpu["main"], config)
    assert isinstance(provider, AliyunProvider)
    assert provider._ecs.host == host
    assert provider.call_timeout == 30.0
