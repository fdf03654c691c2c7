"""The real controller and store over the AWS provider: a fault in a call, and the life goes on.

The controller's clock is virtual, a step a second; the cloud's states change when the test says so.
The HTTP between them is real.
"""

from __future__ import annotations

import pytest

from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.claimed import Claimed, ClaimedProvider
from qwenctl.core.phase import Phase
from tests.integration.qwenctl.clouds.aws.lives import NEVER, Live
from tests.simulation.puppets import GPU
from tests.support.faults import Fault, ec2_error
from tests.support.moto_cloud import CREDENTIALS

FAULTS = {
    "throttled": Fault.error(ec2_error("RequestLimitExceeded", status=503)),
    "internal error": Fault.error(ec2_error("InternalError", status=500)),
    "unavailable": Fault.unavailable(),
    "garbage": Fault.garbage(),
    "cut before": Fault.cut_before(),
    "cut after": Fault.cut_after(),
    "denied": Fault.error(ec2_error("UnauthorizedOperation", status=403)),
    "no capacity": Fault.error(ec2_error("InsufficientInstanceCapacity", status=500)),
    "wrong state": Fault.error(ec2_error("IncorrectInstanceState")),
    "unknown": Fault.error(ec2_error("NeverHeardOf")),
}


SURVIVED = {1: 45, 4: 240}
"""Seconds within which a life goes on, by the number of faults in a row; the pauses double."""


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("action", ["DescribeInstances", "StartInstances", "StopInstances"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_life_survives_a_fault(name: str, action: str, times: int, live: Live) -> None:
    life = live()
    life.faults.add(Fault(**{**vars(FAULTS[name]), "action": action, "times": times}))
    life.demand()
    life.run(SURVIVED[times], until=Phase.READY)
    assert life.now.address == "10.1.2.3"
    assert life.now.failure is None or life.now.failure.attempts <= 5
    assert life.took_effect("start") == 1
    life.store.release(GPU, actor="ada")
    life.run(SURVIVED[times], until=Phase.OFF)
    assert (life.took_effect("start"), life.took_effect("stop")) == (1, 1)
    assert life.cloud.state(life.machine.instance_id) == "stopped"
    if name != "cut after":  # where the cloud has taken it, a further one has no effect
        assert life.faults.accepted("StartInstances") == 1
        assert life.faults.accepted("StopInstances") == 1


@pytest.mark.parametrize("fault", [Fault.cut_after(), Fault.slow(30)], ids=["cut", "slow"])
def test_a_start_that_was_accepted_unseen_is_adopted(fault: Fault, live: Live) -> None:
    life = live()
    life.faults.add(Fault(**{**vars(fault), "action": "StartInstances"}))  # always
    life.demand()
    life.run(300, until=Phase.READY)
    assert len(life.faults.calls("StartInstances")) == 1
    assert life.took_effect("start") == 1
    assert Phase.FAILED not in life.phases


def test_a_stop_that_was_accepted_unseen_is_believed_when_seen(live: Live) -> None:
    life = live()
    life.demand()
    life.run(100, until=Phase.READY)
    life.faults.add(Fault.cut_after("StopInstances"))
    life.store.release(GPU, actor="ada")
    life.run(300, until=Phase.OFF)
    assert life.took_effect("stop") == 1
    assert len(life.faults.calls("StopInstances")) == 1


def test_two_controllers_and_a_slow_start_start_once(live: Live) -> None:
    life = live(controllers=2)
    life.faults.add(Fault.slow(30, "StartInstances", times=1))
    life.demand()
    life.run(300, until=Phase.READY)
    assert len(life.faults.calls("StartInstances")) == 1
    assert life.took_effect("start") == 1


def test_capacity_that_lacks_after_the_start_was_accepted(live: Live) -> None:
    life = live()
    life.cloud.set(pending=0.0, no_capacity=1)
    life.demand()
    life.run(60, settle=0, until=Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    assert "no such machine free" in failure.message
    life.cloud.set(pending=NEVER)
    life.run(120, until=Phase.READY)
    assert life.took_effect("start") == 2  # the first came to nothing


def test_a_reclaimed_spot_instance_is_explained_and_started_when_there_is_capacity(
    live: Live,
) -> None:
    life = live()
    life.demand()
    life.run(100, until=Phase.READY)
    life.cloud.happen(life.machine.instance_id, "stopped", "Server.SpotInstanceShutdown")
    life.faults.add(Fault.error(ec2_error("IncorrectSpotRequestState"), "StartInstances"))
    life.run(300, until=Phase.FAILED)
    life.run(200, settle=0)
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "no_capacity"
    assert "taken the spot instance back" in failure.message
    life.faults.heal()
    life.run(600, until=Phase.READY)
    assert life.took_effect("start") == 2


@pytest.mark.parametrize("action", ["DescribeInstances", "StartInstances", "StopInstances"])
def test_throttling_makes_no_storm(action: str, live: Live) -> None:
    life = live()
    fault = Fault.error(ec2_error("RequestLimitExceeded", status=503), action)
    if action == "StopInstances":
        life.demand()
        life.run(100, until=Phase.READY)
        life.store.release(GPU, actor="ada")
        life.faults.forget()
        life.faults.add(fault)
    else:
        life.faults.add(fault)
        life.demand()
    life.run(600, settle=0)
    # One each seven seconds at the most; fewer where the wait doubles or the cloud gets its time.
    most = {"DescribeInstances": 87, "StartInstances": 8, "StopInstances": 41}[action]
    assert 1 < len(life.faults.calls(action)) <= most
    if action == "DescribeInstances":
        assert life.faults.calls("StartInstances") == []  # nothing is started blind


def test_a_person_is_told_what_to_do(live: Live) -> None:
    life = live()
    words = "You may not. Encoded authorization failure message: " + "x7Ab" * 100
    refusal = ec2_error("UnauthorizedOperation", words, 403, request_id="r-42")
    life.faults.add(Fault.error(refusal, "StartInstances"))
    life.demand()
    life.run(30, settle=0, until=Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "denied"
    assert "`qwenctl permissions aws`" in failure.headline
    assert "(UnauthorizedOperation, request r-42)" in failure.message
    stored = " ".join(str(event.fields) for event in life.store.events(GPU))
    assert "x7Ab" not in stored + str(life.now.state)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert CREDENTIALS[name] not in stored + str(life.now.state)


def test_a_terminated_instance_is_not_waited_for(live: Live) -> None:
    life = live()
    life.cloud.happen(life.machine.instance_id, "terminated", "Client.UserInitiatedShutdown")
    life.demand()
    life.run(30, until=Phase.FAILED)
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "not_found"
    assert "terminated and cannot come back" in failure.message
    assert life.faults.calls("StartInstances") == []


def test_calls_of_one_boot_and_one_stop(live: Live) -> None:
    """A boot of 90 s: running after 20 s, the agent after 45 s, ready after 90 s."""
    life = live(load=45)
    life.run(90)  # it has been off for a while
    life.faults.forget()
    life.demand()
    life.node.mood = "mute"
    life.run(20, settle=0)
    life.machine.settle()
    life.run(25, settle=0)
    life.node.mood = "well"
    life.run(60, settle=0, until=Phase.READY)
    booting = len(life.faults.calls("DescribeInstances"))
    assert len(life.faults.calls("StartInstances")) == 1
    life.faults.forget()
    life.store.release(GPU, actor="ada")
    life.run(20, settle=0)
    life.machine.settle()
    life.run(30, settle=0, until=Phase.OFF)
    stopping = len(life.faults.calls("DescribeInstances"))
    assert len(life.faults.calls("StopInstances")) == 1
    print(f"DescribeInstances: {booting} for a boot of 90 s, {stopping} for a stop of 20 s")
    assert booting <= 6
    assert stopping <= 5


def test_the_claim_is_a_tag_that_a_look_reads(live: Live, account: Account) -> None:
    life = live()
    provider = AwsProvider(account, life.machine.instance_id)
    claimed = ClaimedProvider(provider, "one/main", lambda: "id-of-one")
    other = ClaimedProvider(provider, "two/main", lambda: "id-of-two")
    assert claimed.describe().claim.startswith("id-of-one one/main ")
    assert len(life.faults.calls("CreateTags")) == 1
    with pytest.raises(Claimed, match="another deployment, 'one'"):
        other.describe()
