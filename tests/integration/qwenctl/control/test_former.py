"""Settings that change while an instance is on: it is wound down by those that it was started by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwenctl.clouds.base import Denied, NoCapacity, Observation, Provider, Transient
from qwenctl.config import started
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.started import Started
from qwenctl.control import former
from qwenctl.control.former import ConfiguredController, RemovedGpu, RemovedGpus
from qwenctl.control.left_on import removed
from qwenctl.core.claims import Claim
from qwenctl.core.explain import explain
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.status import full_status
from qwenctl.errors import ConfigError
from qwenctl.store.store import Store
from tests.simulation.life import Life
from tests.simulation.puppets import GPU, Cloud
from tests.support.virtual_time import VirtualClock

ONE, TWO, THREE = "i-00000000000000001", "i-00000000000000002", "i-00000000000000003"


class Named(Cloud):
    """One of several instances of an account."""

    name = ""

    def describe(self) -> Observation:
        return replace(super().describe(), instance_id=self.name)


class Account:
    """The instances, whoever names them, and the most that were on at once."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clouds = {name: Named(clock, boot=2.0, halt=3.0) for name in (ONE, TWO, THREE)}
        for number, (name, cloud) in enumerate(self.clouds.items()):
            cloud.name, cloud.boots = name, 100 * number  # so each boot has an id of its own
        self.most = 0
        self.unusable = ""
        """Why the provider cannot be made."""

    def make(self, name: str, gpu: GpuConfig, config: Config) -> Provider:
        if self.unusable:
            raise ConfigError(self.unusable)
        return self.clouds[gpu.settings.instance]

    @property
    def on(self) -> list[str]:
        off = (Observed.STOPPED, Observed.ABSENT)
        found = [name for name, cloud in self.clouds.items() if cloud.state not in off]
        self.most = max(self.most, len(found))
        return found


def config_of(
    instance: str, name: str = GPU, *, fallback: tuple[str, ...] = (), **keys: Any
) -> Config:
    aws = {"instance_id": instance, "region": "us-east-1", **keys.pop("aws", {})}
    others = [{"name": f"other-{n}", "instance_id": other} for n, other in enumerate(fallback)]
    table = {"provider": "aws", "aws": aws, "idle_timeout": 600, "fallback": others, **keys}
    return Config.model_validate({"gpu": {name: table}})


class Edited(Life):
    """A GPU whose settings may be edited; the proxy is then restarted."""

    def __init__(self, store: Store, clock: VirtualClock, account: Account) -> None:
        super().__init__(store, clock)
        self.account = account

    def serve(self, config: Config) -> None:
        if hasattr(self.controller, "_own"):
            self.controller._give_up_lock()
        self.config = config
        gpu = config.gpu[GPU]
        self.gpu = gpu
        provider: Provider = self.account.clouds[gpu.settings.instance]
        if gpu.fallback:
            provider = started.Started.of(gpu, config).provider(GPU, config)
        self.controller = ConfiguredController(
            GPU, gpu, self.store, provider, config=config, monotonic=self.clock
        )
        self.node.cloud = self.account.clouds[gpu.settings.instance]

    def run(self, seconds: float, *, speaks: bool = True, wanted: bool = False) -> None:
        for _ in range(round(seconds)):
            super().run(1.0, speaks=speaks, wanted=wanted)
            assert len(self.account.on) <= 1, self.account.on

    def pin(self) -> None:
        self.store.pin(GPU, "pin:ada", 86400.0, reason="", actor="ada")

    @property
    def why(self) -> str:
        return "\n".join(map(str, explain(self.now, self.store.events(GPU, 1000))))


@pytest.fixture
def account(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account(clock)
    monkeypatch.setattr(started, "make_provider", account.make)
    return account


@pytest.fixture
def edited(store: Store, clock: VirtualClock, account: Account) -> Edited:
    return Edited(store, clock, account)


def test_a_pinned_instance_is_stopped_before_the_one_that_the_settings_name_now_starts(
    edited: Edited, account: Account
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    assert edited.phase() is Phase.READY
    edited.serve(config_of(TWO))
    edited.node.cloud = account.clouds[ONE]
    edited.run(3)
    assert f"the settings name aws {TWO} in us-east-1 now; aws {ONE} in us-east-1" in edited.why
    assert account.on == [ONE]
    edited.run(15)
    edited.node.cloud = account.clouds[TWO]
    edited.run(30)
    assert account.on == [TWO]
    assert edited.phase() is Phase.READY  # by the pin, which the change has not touched
    assert not edited.now.blocks
    assert (len(account.clouds[ONE].stops), len(account.clouds[TWO].starts)) == (1, 1)


def test_running_work_on_the_former_instance_is_waited_for(
    edited: Edited, account: Account
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.serve(config_of(TWO))
    edited.node.cloud, edited.node.active = account.clouds[ONE], 1
    edited.run(120)
    assert account.on == [ONE]
    assert edited.phase() is Phase.DRAINING
    edited.node.active = 0
    edited.run(30)
    edited.node.cloud = account.clouds[TWO]
    edited.run(30)
    assert account.on == [TWO]


@pytest.mark.parametrize("keys", [{"agent": False}, {}])
def test_without_demand_the_former_instance_goes_off_and_nothing_starts(
    edited: Edited, account: Account, keys: dict[str, Any]
) -> None:
    edited.serve(config_of(ONE, **keys))
    edited.demand()
    edited.run(4)
    edited.store.release(GPU, actor="ada")
    edited.serve(config_of(TWO, **keys))
    edited.run(60, speaks=False)
    assert account.on == []
    assert edited.phase() is Phase.OFF
    assert not account.clouds[TWO].starts


@pytest.mark.parametrize("seconds", range(8))
def test_the_settings_may_change_in_any_phase(
    edited: Edited, account: Account, seconds: int
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(seconds)
    edited.serve(config_of(TWO))
    edited.node.cloud = account.clouds[ONE]
    edited.run(20)
    edited.node.cloud = account.clouds[TWO]
    edited.run(40)
    assert account.on == [TWO]
    assert edited.phase() is Phase.READY


def test_a_mistake_put_right_is_not_waited_for(edited: Edited, account: Account) -> None:
    """The instance of the mistake was never on, and cannot even be looked at."""
    account.clouds[ONE].refuse_start = account.clouds[ONE].refuse_describe = lambda: Denied("no")
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(10)
    assert edited.phase() is Phase.FAILED
    edited.serve(config_of(TWO))
    edited.run(30)
    assert edited.phase() is Phase.READY
    assert not account.clouds[ONE].starts


def test_another_way_to_the_same_instance_stops_nothing(edited: Edited, account: Account) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.serve(config_of(ONE, aws={"profile": "other"}))
    edited.run(60)
    assert edited.phase() is Phase.READY
    assert not account.clouds[ONE].stops


@pytest.mark.parametrize("lasts", [10, 100])
def test_a_cloud_that_does_not_answer_is_waited_for_but_not_for_ever(
    edited: Edited, account: Account, lasts: int
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    end = edited.clock() + lasts
    cloud = account.clouds[ONE]
    edited.serve(config_of(ONE, aws={"profile": "other"}))
    describe = cloud.describe
    edited.controller._provider = other = Named(edited.clock)

    def answer() -> Observation:
        if edited.clock() < end:
            raise Transient("no answer")
        return describe()

    other.describe = answer  # type: ignore[method-assign]
    edited.run(lasts + 20)
    assert len(cloud.stops) == (lasts > former.ANSWER_SECONDS)


def test_another_account_does_not_make_the_instance_off(edited: Edited, account: Account) -> None:
    """By the new profile there is no such instance; by the old one it is on, and is stopped."""
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.serve(config_of(ONE, aws={"profile": "other"}))
    elsewhere = Named(edited.clock)
    elsewhere.leaves_out = lambda: True
    edited.controller._provider = elsewhere
    edited.node.mood = "mute"
    edited.run(60)
    assert account.on == []
    assert not elsewhere.starts


def test_a_fallback_added_or_removed_does_not_stop_the_one_that_serves(
    edited: Edited, account: Account
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    for others in ((TWO, THREE), (THREE,), ()):
        edited.serve(config_of(ONE, fallback=others))
        edited.run(30)
        assert edited.phase() is Phase.READY
    assert not account.clouds[ONE].stops


def test_a_fallback_that_serves_and_is_removed_is_stopped(edited: Edited, account: Account) -> None:
    account.clouds[ONE].refuse_start = lambda: NoCapacity("full")
    edited.serve(config_of(ONE, fallback=(TWO,)))
    edited.node.cloud = account.clouds[TWO]
    edited.pin()
    edited.run(40)
    assert account.on == [TWO]
    account.clouds[ONE].refuse_start = lambda: None
    edited.serve(config_of(ONE, fallback=(THREE,)))
    edited.node.cloud = account.clouds[TWO]
    edited.run(30)
    edited.node.cloud = account.clouds[ONE]
    edited.run(60)
    assert account.on == [ONE]
    assert edited.phase() is Phase.READY


def test_settings_put_back_lift_the_block(edited: Edited, account: Account) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.serve(config_of(TWO))
    edited.node.cloud = account.clouds[ONE]
    edited.run(2)
    assert edited.now.blocks
    edited.serve(config_of(ONE))
    edited.run(20)
    assert not edited.now.blocks
    assert edited.phase() is Phase.READY
    assert not account.clouds[ONE].stops


def test_what_cannot_be_stopped_is_named_and_only_a_person_lets_it_go(
    edited: Edited, account: Account
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.serve(config_of(TWO))
    account.unusable = "its settings held api_key"
    edited.node.cloud = account.clouds[ONE]
    edited.run(60)
    assert account.on == [ONE]
    assert ONE in edited.why
    assert "its settings held api_key" in edited.why
    assert "qwenctl unblock --forget" in edited.why
    edited.store.unblock(GPU, actor="ada")
    edited.run(20)
    assert account.on == [ONE]
    assert edited.now.blocks
    status = full_status(edited.now, [], edited.gpu)
    assert status["phase"] != "off"
    account.clouds[ONE].die()  # in the console
    edited.store.unblock(GPU, actor="ada", forget=True)
    edited.node.cloud = account.clouds[TWO]
    edited.run(60)
    assert account.on == [TWO]
    assert not edited.now.blocks


def test_what_an_earlier_version_started_is_wound_down_too(
    edited: Edited, account: Account, store: Store
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.controller._started = ""
    edited.run(20)
    assert "started" not in edited.now.state
    edited.serve(config_of(ONE))  # the present version, before the edit
    edited.run(3)
    edited.serve(config_of(TWO))
    edited.node.cloud = account.clouds[ONE]
    edited.run(20)
    edited.node.cloud = account.clouds[TWO]
    edited.run(30)
    assert account.on == [TWO]


def test_no_secret_is_remembered() -> None:
    text = Started.of(config_of(ONE).gpu[GPU], config_of(ONE)).encode()
    assert ONE in text
    assert len(text) < 600
    assert Started.read(text).encode() == text
    kept = started._candidate("", GpuConfig(), Config())
    kept["secrets"] = ["api_key"]
    with pytest.raises(ConfigError, match="its settings held api_key, which only the config"):
        Started([kept]).gpu()
    assert started._holds_secret("api_key", "x")
    assert started._holds_secret("endpoint_url", "https://me:word@host")
    assert not started._holds_secret("key_pair_name", "mine")
    assert started._holds_secret("accounts", [{"token": "x"}])
    assert started._holds_secret("command", ["program", "--api-key", "x"])
    assert started._holds_secret("urls", ("https://me:word@host",))
    assert not started._holds_secret("command", ["program", "--port", "80"])


def test_an_instance_given_to_another_gpu_is_left_to_it(
    edited: Edited, account: Account, store: Store
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    both = config_of(ONE, "renamed")
    assert removed(both, store) == {}
    assert list(removed(config_of(TWO, "renamed"), store)) == [GPU]


def wind_down(
    store: Store, clock: VirtualClock, config: Config, meanwhile: Callable[[], None]
) -> RemovedGpu:
    _, found = removed(config, store)[GPU]
    controller = RemovedGpu(GPU, found, store, config, monotonic=clock)
    for _ in range(60):
        controller.step()
        if controller._done.is_set():
            break
        meanwhile()
        clock.advance(1.0)
    return controller


@pytest.mark.parametrize("agent", [True, False])
def test_a_gpu_that_the_file_no_longer_has_is_wound_down(
    edited: Edited, account: Account, store: Store, clock: VirtualClock, agent: bool
) -> None:
    edited.serve(config_of(ONE, agent=agent))
    edited.pin()
    edited.run(20)
    edited.controller._give_up_lock()
    config = config_of(TWO, "another")
    said: list[str] = []
    controller = wind_down(store, clock, config, lambda: said.append(edited.why))
    assert controller._done.is_set()
    assert account.on == []
    assert edited.phase() is Phase.OFF
    assert f"the settings no longer have this GPU; aws {ONE} in us-east-1" in said[0]
    assert not edited.now.blocks
    assert not edited.now.leases
    assert removed(config, store) == {}
    assert store.gpus() == []


def test_running_work_of_a_removed_gpu_is_waited_for(
    edited: Edited, account: Account, store: Store, clock: VirtualClock
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.controller._give_up_lock()
    edited.node.active = 1
    began = clock()

    def work() -> None:
        edited.node.active = int(clock() - began < 40)
        edited.node.speak()
        assert account.on == [ONE] or clock() - began > 40

    assert wind_down(store, clock, config_of(TWO, "another"), work)._done.is_set()
    assert account.on == []


class Tagged(Named):
    """A cloud whose instance may have another deployment's tag."""

    tag = ""

    def describe(self) -> Observation:
        return replace(super().describe(), claim=self.tag)

    def claim(self, value: str) -> None:
        self.tag = value


def test_a_former_instance_of_another_deployment_says_what_lifts_the_block(
    edited: Edited, account: Account, tmp_path: Path
) -> None:
    account.clouds[ONE].__class__ = Tagged
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    account.clouds[ONE].claim(Claim("id-of-other", "other/main", 0.0, 0.0).encode())  # type: ignore[attr-defined]
    edited.serve(config_of(TWO).model_copy(update={"state_dir": str(tmp_path)}))
    edited.node.mood = "mute"
    edited.run(120, speaks=False)
    assert account.on == [ONE]
    assert (
        "belongs to another deployment and is left alone; `qwenctl unblock --forget`" in edited.why
    )


def test_an_instance_that_was_removed_and_given_to_another_deployment_is_not_stopped(
    edited: Edited, account: Account, store: Store, clock: VirtualClock, tmp_path: Path
) -> None:
    account.clouds[ONE].__class__ = Tagged
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    edited.controller._give_up_lock()
    config = config_of(TWO, "another").model_copy(update={"state_dir": str(tmp_path)})
    account.clouds[ONE].claim(Claim("id-of-other", "other/main", 0.0, 0.0).encode())  # type: ignore[attr-defined]
    controller = wind_down(store, clock, config, lambda: None)
    assert account.on == [ONE]
    assert not controller._done.is_set()
    assert "belongs to another deployment, 'other'" in edited.why


def test_a_replica_with_the_older_file_keeps_what_it_leads(
    edited: Edited, account: Account, store: Store, clock: VirtualClock
) -> None:
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    controller = wind_down(store, clock, config_of(TWO, "another"), lambda: edited.run(1.0))
    assert not controller._done.is_set()
    assert account.on == [ONE]
    assert not edited.now.blocks


def test_removed_gpus_are_looked_for_again_and_again(
    edited: Edited, account: Account, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be started by a replica with the older file, which then ends."""
    begun: list[str] = []
    monkeypatch.setattr(former.RemovedGpu, "run", lambda self, stop: begun.append(self.name))
    watch = RemovedGpus(config_of(TWO, "another"), store)
    watch.step(threading.Event())
    assert begun == []
    edited.serve(config_of(ONE))
    edited.pin()
    edited.run(20)
    watch.step(threading.Event())
    assert begun == [GPU]
    assert GPU in watch.gpus
