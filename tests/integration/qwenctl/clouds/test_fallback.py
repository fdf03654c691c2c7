"""Several instances for one GPU: the real controller and store, the real SDKs, HTTP to fake clouds.

At every step of every test: no two instances are on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import Provider
from qwenctl.clouds.fallback import Fallback
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.explain import explain
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import page_status
from qwenctl.errors import StoreUnavailable
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store
from tests.support.fake_ecs import FakeEcs, FakeInstance
from tests.support.fake_ecs.client import config_for, provider_for
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.moto_cloud import CREDENTIALS, REGION, MotoCloud
from tests.support.virtual_time import VirtualClock

GPU = "main"
HOUR = 3600.0


class Life:
    """One GPU with several instances; time passes a second at a time."""

    def __init__(
        self,
        store: Store,
        clock: VirtualClock,
        candidates: Sequence[tuple[str, Provider]],
        on: Callable[[], list[str]],
        settle: Callable[[], None],
    ) -> None:
        self.store, self.clock = store, clock
        self.on, self._settle = on, settle
        self._gpu = GpuConfig(idle_timeout=HOUR)
        provider = Fallback(candidates, monotonic=clock)
        self._controller = Controller(GPU, self._gpu, store, provider, monotonic=clock)
        self._boots = 0
        self._running: list[str] = []
        self.most = 1
        self.reporting: tuple[Phase, ...] = ()
        """In which phases the agent reports, besides those of the boot."""
        self.used: list[str] = []
        """Which instances were on, in order."""

    @property
    def now(self) -> Snapshot:
        return self.store.snapshot(GPU)

    def demand(self) -> None:
        self.store.demand(GPU, "request:ada", HOUR, reason="test", actor="ada")

    def run(
        self,
        until: Phase,
        seconds: int = 600,
        *,
        boots: int = 0,
        stop: Callable[[], bool] = lambda: False,
        quiet: bool = False,
    ) -> None:
        """Until that phase and so many boots have begun, or until ``stop`` says so; ``quiet``: the
        time may run out."""
        for second in range(seconds):
            if stop() or (self.now.phase is until and self._boots >= boots):
                return
            with suppress(StoreUnavailable):
                self._controller.step()
            on = self.on()
            assert len(on) <= self.most, f"{on} are on at the same time"
            if len(on) == 1 and on != self.used[-1:]:
                self.used += on
            if second % 5 == 4:
                self._settle()
            self._speak(on)
            self.clock.advance(1.0)
        assert quiet, f"{self.now.phase.value}, not {until.value}, after {seconds} s"

    def _speak(self, on: list[str]) -> None:
        """The agent of the instance that is running: hello and ready as soon as it can."""
        if on != self._running:
            self._boots += bool(on)
            self._running = on
        phase = self.now.phase
        if not on or phase not in (Phase.BOOTING, Phase.LOADING, *self.reporting):
            return
        boot = {"gpu": GPU, "boot_id": f"boot-{self._boots:04}"}
        nonce = f"{self.clock.now:.0f}".rjust(16, "0")
        if phase is Phase.BOOTING:
            self.store.hello(Hello(**boot), f"h{nonce}")
        report = Report(**boot, start_seq=self.now.start_seq, state="ready")
        self.store.report(report, f"r{nonce}", heartbeat=5.0)

    def why(self) -> str:
        return "\n".join(map(str, explain(self.now, self.store.events(GPU), drain=4.0)))


# Alibaba Cloud


@pytest.fixture
def ecs(store: Store, clock: VirtualClock) -> Iterator[tuple[FakeEcs, Life]]:
    with FakeEcs() as fake:
        candidates = []
        for id_ in ("i-bp1a", "i-bp1b"):
            fake.cloud.add(id_, start_seconds=HOUR, stop_seconds=HOUR)
            provider = provider_for(fake, instance_id=id_, read_timeout=30)
            provider.call_timeout = 10.0  # virtual seconds
            candidates.append((id_[-1], provider))

        def on() -> list[str]:
            return [id_ for id_, one in machines.items() if one.status in ("Starting", "Running")]

        def settle() -> None:
            for one in machines.values():
                if one.status in ("Starting", "Stopping"):
                    one.status = {"Starting": "Running", "Stopping": "Stopped"}[one.status]

        machines: dict[str, FakeInstance] = fake.cloud.instances
        yield fake, Life(store, clock, candidates, on, settle)


def test_no_stock_and_back_again(ecs: tuple[FakeEcs, Life]) -> None:
    fake, life = ecs
    fake.cloud.instances["i-bp1a"].in_stock = False
    life.demand()
    life.run(Phase.READY)
    assert life.used == ["i-bp1b"]
    assert life.now.state["instance_id"] == "i-bp1b"
    assert "b was started instead of a: " in life.why()
    assert "OperationDenied.NoStock" in life.why()
    page = page_status(life.now, life.store.events(GPU), GpuConfig(), may_wake=True)
    assert page["note"].startswith("b was started instead of a")
    life.store.release(GPU, actor="ada")
    life.run(Phase.OFF)
    fake.cloud.instances["i-bp1a"].in_stock = True
    life.demand()
    life.run(Phase.READY)
    assert life.used == ["i-bp1b", "i-bp1a"]
    assert "instead of" not in life.why()


def test_no_stock_anywhere_is_tried_again(ecs: tuple[FakeEcs, Life]) -> None:
    fake, life = ecs
    for one in fake.cloud.instances.values():
        one.in_stock = False
    life.demand()
    life.run(Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "no_capacity"
    assert failure.message.startswith("none of the 2 candidates can be started: a: ")
    fake.cloud.instances["i-bp1b"].in_stock = True
    life.run(Phase.READY)
    assert life.used == ["i-bp1b"]


@pytest.mark.parametrize("kind", ["cut_after", "garbage", "cut_before"])
def test_a_start_that_was_not_answered_starts_no_other(
    ecs: tuple[FakeEcs, Life], kind: Any
) -> None:
    fake, life = ecs
    fake.fail("StartInstance", kind, status=200)
    life.demand()
    life.run(Phase.READY)
    assert life.used == ["i-bp1a"]
    assert fake.cloud.instances["i-bp1a"].starts == 1


def test_one_that_has_been_released_is_passed_over(ecs: tuple[FakeEcs, Life]) -> None:
    """A spot instance of Alibaba Cloud that was reclaimed is gone for good."""
    fake, life = ecs
    life.demand()
    life.run(Phase.READY)
    del fake.cloud.instances["i-bp1a"]
    life.store.look(GPU, actor="test", cause="test")
    life.run(Phase.READY, boots=2)
    assert life.used == ["i-bp1a", "i-bp1b"]


@pytest.mark.parametrize("looks", [1, 10])
def test_one_that_the_cloud_leaves_out_while_its_agent_reports_stays(
    ecs: tuple[FakeEcs, Life], looks: int
) -> None:
    fake, life = ecs
    life.demand()
    life.run(Phase.READY)
    life.reporting = (Phase.READY,)
    life.on = lambda: ["i-bp1a"]
    machine = fake.cloud.instances["i-bp1a"]
    for _ in range(3):
        for second in range(5 * looks):
            # The cloud's answers leave it out for a while; and each time another one is on.
            fake.cloud.instances.pop("i-bp1a", None)
            fake.cloud.instances["i-bp1b"].status = "Running" if second % 2 else "Stopped"
            life.store.look(GPU, actor="test", cause="test")
            life.run(Phase.OFF, 1, quiet=True)
            assert life.now.phase is Phase.READY
            assert life.now.state["instance_id"] == "i-bp1a"
        fake.cloud.instances["i-bp1b"].status = "Stopped"
        fake.cloud.instances["i-bp1a"] = machine
        life.run(Phase.OFF, 5, quiet=True)
    assert life.now.phase is Phase.READY
    assert machine.status == "Running"
    assert machine.starts == 1
    assert fake.cloud.instances["i-bp1b"].starts == 0


# AWS


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoCloud]:
    with MotoCloud(tmp_path_factory.mktemp("moto") / "log") as server:
        yield server


@pytest.fixture
def ec2(
    cloud: MotoCloud, store: Store, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[MotoCloud, FaultProxy, list[str], Life]]:
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    cloud.set(pending=HOUR, stopping=HOUR, no_capacity=0)
    ids = [cloud.new_instance(cloud.client(), state="stopped") for _ in range(2)]
    with FaultProxy(cloud.url) as faults:
        account = Account(AwsConfig(region=REGION, endpoint_url=faults.url, read_timeout=30))
        providers = [AwsProvider(account, id_) for id_ in ids]
        for provider in providers:
            provider.call_timeout = 10.0  # virtual seconds

        def on() -> list[str]:
            return [id_ for id_ in ids if cloud.state(id_) in ("pending", "running")]

        def settle() -> None:
            for id_ in ids:
                after = {"pending": "running", "stopping": "stopped"}.get(cloud.state(id_))
                if after:
                    cloud.happen(id_, after, "Client.UserInitiatedShutdown")

        candidates = list(zip(("spot", "on-demand"), providers, strict=True))
        yield cloud, faults, ids, Life(store, clock, candidates, on, settle)


Ec2 = tuple[MotoCloud, FaultProxy, list[str], Life]


def test_a_reclaimed_spot_instance_is_replaced(ec2: Ec2) -> None:
    cloud, faults, ids, life = ec2
    life.demand()
    life.run(Phase.READY)
    cloud.happen(ids[0], "stopped", "Server.SpotInstanceShutdown")
    faults.add(Fault.error(ec2_error("IncorrectSpotRequestState"), "StartInstances", times=1))
    life.store.look(GPU, actor="test", cause="no connection to the node")
    life.run(Phase.READY, boots=2)
    assert life.used == ids
    assert "on-demand was started instead of spot: " in life.why()
    life.store.release(GPU, actor="ada")
    life.run(Phase.OFF)
    assert [cloud.journal(id_, "stop") for id_ in ids] == [0, 1]


def test_a_spot_instance_that_ec2_starts_again_by_itself_is_stopped(ec2: Ec2) -> None:
    cloud, faults, ids, life = ec2
    faults.add(
        Fault.error(
            ec2_error("InsufficientInstanceCapacity", status=500), times=1, action="StartInstances"
        )
    )
    life.demand()
    life.run(Phase.READY)
    assert life.used == [ids[1]]
    life.most = 2
    cloud.happen(ids[0], "running")
    life.run(Phase.OFF, 120, stop=lambda: cloud.state(ids[0]) == "stopped")
    assert life.now.phase is Phase.READY
    assert life.now.state["instance_id"] == ids[1]
    assert [cloud.journal(id_, "stop") for id_ in ids] == [1, 0]


def test_what_was_lost_of_an_accepted_start_starts_no_other(
    ec2: Ec2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis blinks as the controller notes the call, and EC2 shows the old state for a while."""
    cloud, faults, ids, life = ec2
    noted = life.store.record_call
    blinks = [True]

    def note(*args: Any, **more: Any) -> Any:
        if blinks:
            blinks.clear()
            cloud.happen(ids[0], "stopped")  # it does not show yet
            raise StoreUnavailable("Redis cannot be reached")
        return noted(*args, **more)

    monkeypatch.setattr(life.store, "record_call", note)
    life.demand()
    life.run(Phase.READY, 15, stop=lambda: not blinks)
    life.run(Phase.READY, 15, stop=lambda: False, quiet=True)
    assert len(faults.calls("StartInstances")) == 1
    cloud.happen(ids[0], "pending")
    life.run(Phase.READY)
    assert life.used == [ids[0]]
    assert len(faults.calls("StartInstances")) == 1


def test_capacity_that_lacks_after_the_start_was_accepted(ec2: Ec2) -> None:
    cloud, _, ids, life = ec2
    cloud.set(pending=0.0, no_capacity=1)
    life.demand()
    life.run(Phase.FAILED)
    cloud.set(pending=HOUR)
    life.run(Phase.READY)
    assert life.used[-1] == ids[1]
    assert [cloud.journal(id_, "start") for id_ in ids] == [1, 1]
    assert "EC2 had no such machine free" in life.why()


def test_candidates_of_one_account_share_a_look(ec2: Ec2) -> None:
    _, faults, _, life = ec2
    life.demand()
    life.run(Phase.READY)
    for call in ("DescribeInstances", "StartInstances"):
        print(f"{call}: {len(faults.calls(call))} for a boot with two candidates")
    assert len(faults.calls("DescribeInstances")) <= 6


# Configuration

FILE = """
[gpu.main]
provider = "aliyun"

[gpu.main.aliyun]
region = "cn-hangzhou"
instance_id = "i-bp1a"
address = "private"

[[gpu.main.fallback]]
name = "zone-b"
instance_id = "i-bp1b"

[[gpu.main.fallback]]
name = "beijing"
instance_id = "i-2zec"
region = "cn-beijing"
address = "eip"

[[gpu.main.fallback]]
name = "aws"
provider = "aws"
instance_id = "i-0123456789abcdef0"
region = "us-east-1"
"""


def test_the_file(tmp_path: Path) -> None:
    from qwenctl.admin.permissions import configured
    from qwenctl.config.loading import load_config
    from qwenctl.config.providers import make_provider

    file = tmp_path / "qwenctl.toml"
    file.write_text(FILE)
    config = load_config(str(file), env={})
    found = config.gpu["main"].candidates()
    assert [name for name, _ in found] == ["i-bp1a", "zone-b", "beijing", "aws"]
    tables = [getattr(gpu, gpu.provider) for _, gpu in found]
    assert [table.instance_id for table in tables][1:3] == ["i-bp1b", "i-2zec"]
    assert [table.region for table in tables] == [
        "cn-hangzhou",
        "cn-hangzhou",
        "cn-beijing",
        "us-east-1",
    ]
    assert [table.address for table in tables] == ["private", "private", "eip", "auto"]
    provider = make_provider("main", config.gpu["main"], config)
    assert isinstance(provider, Fallback)
    allowed = [one.instance_id for one in configured(config, "aliyun")]
    assert allowed == ["i-bp1a", "i-bp1b", "i-2zec"]


def test_instances_of_one_region_share_their_api() -> None:
    from qwenctl.clouds.aliyun.api import ecs_of

    with FakeEcs() as fake:
        one = ecs_of(config_for(fake, instance_id="i-bp1a", address="eip"))
        assert ecs_of(config_for(fake, instance_id="i-bp1b", keep_charging=True)) is one
        assert ecs_of(config_for(fake, region="cn-beijing")) is not one
