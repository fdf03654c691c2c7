"""Instances that EC2 takes back, and that people stop or terminate, in the middle of a life."""

from __future__ import annotations

from itertools import pairwise

import pytest

from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.fallback import Fallback
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Phase
from tests.integration.qwenctl.clouds.aws.lives import NEVER, Life, Live
from tests.simulation.puppets import GPU
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.moto_cloud import REGION
from tests.support.virtual_time import VirtualClock

TAKEN = "Server.SpotInstanceShutdown"
BY_HAND = "Client.UserInitiatedShutdown"


def ready(life: Life) -> None:
    life.demand()
    life.run(100, until=Phase.READY)


def draining(life: Life) -> None:
    ready(life)
    life.store.release(GPU, actor="ada")
    life.run(10, until=Phase.DRAINING)


def notices(life: Life) -> int:
    return sum(event.kind == "interruption" for event in life.store.events(GPU))


def starts(life: Life) -> list[float]:
    """The times of the start calls, in virtual seconds."""
    return [
        event.time
        for event in life.store.events(GPU, 1000)
        if event.kind == "transition" and event.fields["to"] == "starting"
    ]


# Spot notices


def test_a_notice_told_twice_is_one_interruption(live: Live) -> None:
    life = live()
    ready(life)
    life.node.interrupted = True  # each report has it
    life.run(10)
    assert notices(life) == 1
    life.run(60, until=Phase.READY)
    assert (life.took_effect("start"), life.took_effect("stop")) == (2, 1)


def test_a_second_notice_soon_after_the_first_has_its_start_wait(live: Live) -> None:
    life = live()
    ready(life)
    for _ in range(2):
        life.node.interrupted = True
        life.run(40, until=Phase.STOPPING)
        life.run(100, until=Phase.READY)
    assert notices(life) == 2
    assert (life.took_effect("start"), life.took_effect("stop")) == (3, 2)
    failure = life.now.failure
    assert failure is not None
    assert (failure.code, failure.attempts) == ("spot_interruption", 2)


@pytest.mark.parametrize("phase", [Phase.BOOTING, Phase.LOADING])
def test_a_notice_in_mid_boot_stops_and_starts_it_again(phase: Phase, live: Live) -> None:
    life = live(load=20)
    life.node.mood = "mute"
    life.demand()
    life.run(60, until=Phase.BOOTING)
    if phase is Phase.LOADING:
        life.node.mood = "well"
        life.run(60, until=phase)
    life.node.interrupted, life.node.mood = True, "well"
    life.run(60, until=Phase.STOPPING)
    assert Phase.READY not in life.phases
    life.run(120, until=Phase.READY)
    assert notices(life) == 1
    assert (life.took_effect("start"), life.took_effect("stop")) == (2, 1)


def test_boots_that_are_taken_before_their_hello_are_tried_less_and_less(live: Live) -> None:
    """EC2 shows each as stopping first, so that no look sees it as lost."""
    life = live()
    life.node.mood = "mute"
    life.demand()
    for second in range(500):
        if life.now.phase is Phase.BOOTING:
            life.cloud.happen(life.machine.instance_id, "stopping", TAKEN)
        life.run(1, settle=0)
        if second % 5 == 4:
            life.machine.settle()
    pauses = [b - a for a, b in pairwise(starts(life))]
    assert len(pauses) <= 6, pauses


@pytest.mark.parametrize("error", ["InsufficientInstanceCapacity", "IncorrectSpotRequestState"])
@pytest.mark.parametrize("reason", [TAKEN, BY_HAND])
def test_no_capacity_after_a_notice_is_told_and_tried_again(
    error: str, reason: str, live: Live
) -> None:
    life = live()
    ready(life)
    life.faults.add(Fault.error(ec2_error(error, status=500), "StartInstances"))
    life.node.interrupted = True
    life.run(60, settle=0, until=Phase.STOPPING)
    life.run(5, settle=0)
    life.cloud.happen(life.machine.instance_id, "stopped", reason)
    life.run(330, until=Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    moment = error == "IncorrectSpotRequestState" and reason == BY_HAND  # it may pass soon
    assert failure.code == ("start_timeout" if moment else "no_capacity")
    life.run(200)
    assert moment or len(life.faults.calls("StartInstances")) <= 8
    life.faults.heal()
    life.run(300, until=Phase.READY)
    assert life.took_effect("start") == 2


@pytest.mark.parametrize("error", ["InsufficientInstanceCapacity", "IncorrectSpotRequestState"])
@pytest.mark.parametrize("reason", [TAKEN, BY_HAND])
def test_no_capacity_after_a_notice_starts_the_fallback(
    error: str, reason: str, live: Live, account: Account, clock: VirtualClock
) -> None:
    life = live()
    spot = life.machine.instance_id
    other = life.cloud.new_instance(life.cloud.client(), PrivateIpAddress="10.1.2.4")
    with FaultProxy(life.cloud.url) as faults:
        market = Account(AwsConfig(region=REGION, endpoint_url=faults.url, read_timeout=3))
        candidates = [("spot", AwsProvider(market, spot)), ("other", AwsProvider(account, other))]
        for _, provider in candidates:
            provider.call_timeout = 10.0
        several = Fallback(candidates, monotonic=clock)
        gpu = GpuConfig(idle_timeout=NEVER)
        life.controllers = [Controller(GPU, gpu, life.store, several, monotonic=clock)]
        ready(life)
        faults.add(Fault.error(ec2_error(error, status=500), "StartInstances"))
        life.node.interrupted = True
        life.run(60, settle=0, until=Phase.STOPPING)
        life.run(5, settle=0)
        life.cloud.happen(spot, "stopped", reason)
        life.machine.instance_id = other
        for second in range(150):
            life.run(1, settle=0)
            if second % 5 == 4:
                life.machine.settle()
            assert not {life.cloud.state(spot), life.cloud.state(other)} <= {"pending", "running"}
    assert life.now.phase is Phase.READY
    assert life.now.address == "10.1.2.4"
    assert life.cloud.state(spot) == "stopped"


# By hand


@pytest.mark.parametrize("states", [("stopping", "stopped"), ("stopped",), ("terminated",)])
@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.STOPPING])
def test_one_that_ends_while_it_is_on_its_way_off_is_off(
    states: tuple[str, ...], phase: Phase, live: Live
) -> None:
    life = live()
    draining(life)
    life.run(20, settle=0, until=phase)
    for state in states:
        life.cloud.happen(life.machine.instance_id, state, BY_HAND)
        life.run(3, settle=0)
    life.run(60, settle=0, until=Phase.OFF)
    assert Phase.FAILED not in life.phases
    assert life.took_effect("stop") <= 1
    life.demand()
    if states == ("terminated",):
        life.run(30, until=Phase.FAILED)
        failure = life.now.failure
        assert failure is not None
        assert failure.code == "not_found"
        assert "terminated and cannot come back" in failure.message
        assert life.took_effect("start") == 1
    else:
        life.run(60, until=Phase.READY)
        assert life.took_effect("start") == 2


@pytest.mark.parametrize("states", [("stopping", "stopped"), ("stopped",)])
def test_one_that_is_stopped_while_it_starts_is_told_and_started_again(
    states: tuple[str, ...], live: Live
) -> None:
    life = live()
    life.demand()
    life.run(20, settle=0, until=Phase.STARTING)
    life.run(3, settle=0)
    for state in states:
        life.cloud.happen(life.machine.instance_id, state, BY_HAND)
        life.run(5, settle=0)
    life.run(60, settle=0, until=Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    assert "stopped by a call of the EC2 API" in failure.message
    life.run(90, until=Phase.READY)
    assert life.took_effect("start") == 2


def test_one_that_is_terminated_while_it_starts_is_not_waited_for(live: Live) -> None:
    life = live()
    life.demand()
    life.run(20, settle=0, until=Phase.STARTING)
    life.run(3, settle=0)
    life.cloud.happen(life.machine.instance_id, "terminated", BY_HAND)
    life.run(30, settle=0, until=Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "not_found"
    life.run(100)
    assert len(life.faults.calls("StartInstances")) == 1


def test_one_that_is_stopped_by_hand_while_it_drains_with_new_demand_serves_it(live: Live) -> None:
    life = live()
    draining(life)
    life.cloud.happen(life.machine.instance_id, "stopping", BY_HAND)
    life.demand()
    life.run(30, settle=0, until=Phase.STOPPING)
    life.run(90, until=Phase.READY)
    assert life.took_effect("start") == 2
