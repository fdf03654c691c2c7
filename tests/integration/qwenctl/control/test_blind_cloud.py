"""A cloud that cannot be asked does not keep a node that is ready from serving."""

from __future__ import annotations

import pytest

from qwenctl.clouds.base import Denied, Observation, ProviderError, Throttled, Transient
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.explain import explain
from qwenctl.core.phase import Observed, Phase
from qwenctl.protocol.messages import Hello
from qwenctl.store.store import Store
from tests.simulation.life import IDLE, Life
from tests.simulation.puppets import GPU, Cloud
from tests.support.virtual_time import VirtualClock

pytestmark = pytest.mark.fast

ERRORS = [
    Throttled("too many calls"),
    Denied("the token has expired"),
    Transient("no answer"),
    ProviderError("odd"),
]


class PrivateCloud(Cloud):
    """A cloud that names the private address of a stopped instance, too."""

    keeps = "192.0.2.7"

    def describe(self) -> Observation:
        seen = super().describe()
        address = self.keeps if seen.state is Observed.RUNNING else ""
        return Observation(seen.state, "i-1", address, kept_address=self.keeps)


def life_of(store: Store, clock: VirtualClock, *, address: str = "", keeps: str = "") -> Life:
    life = Life(store, clock, boot=2.0)
    life.gpu = GpuConfig(idle_timeout=IDLE, address=address)
    cloud = PrivateCloud(clock, boot=2.0)
    cloud.keeps = keeps
    life.cloud = cloud  # type: ignore[assignment]
    life.node.cloud = cloud
    life.controller = Controller(GPU, life.gpu, store, cloud, monotonic=clock)
    return life


def blind_after_start(life: Life, error: ProviderError) -> None:
    """Let the cloud refuse every look once it has accepted the start."""
    cloud = life.cloud
    cloud.refuse_describe = lambda: error if cloud.starts else None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
@pytest.mark.parametrize(("address", "keeps"), [("", "192.0.2.7"), ("10.0.0.9", "")])
def test_ready_by_the_word_of_the_boot_that_was_started(
    store: Store, clock: VirtualClock, error: ProviderError, address: str, keeps: str
) -> None:
    life = life_of(store, clock, address=address, keeps=keeps)
    blind_after_start(life, error)
    life.demand()
    life.run(12)
    assert life.phase() is Phase.READY
    assert life.now.address == (address or keeps)
    assert len(life.cloud.starts) == 1
    # The demand ends: nothing is stopped blind, and the node is told.
    life.run(IDLE + 200)
    assert life.phase() is Phase.READY
    assert life.cloud.stops == []
    assert store.unneeded_for(GPU, life.now.node["boot_id"]) == 0
    clock.advance(30)
    assert store.unneeded_for(GPU, life.now.node["boot_id"]) == 30
    life.cloud.refuse_describe = lambda: None
    life.run(120)
    assert life.phase() is Phase.OFF
    assert len(life.cloud.stops) == 1


def test_without_an_address_it_waits_and_says_so(store: Store, clock: VirtualClock) -> None:
    life = life_of(store, clock)
    blind_after_start(life, ERRORS[0])
    life.demand()
    life.run(30)
    assert life.phase() is Phase.LOADING
    why = "\n".join(map(str, explain(life.now, store.events(GPU))))
    assert "the cloud has not named its address yet; gpu.main.address names it" in why
    life.cloud.keeps = "192.0.2.8"  # type: ignore[attr-defined]
    life.cloud.refuse_describe = lambda: None
    life.run(30)
    assert life.phase() is Phase.READY
    assert life.now.address == "192.0.2.8"


def test_an_instance_that_was_there_before_does_not_count(
    store: Store, clock: VirtualClock
) -> None:
    life = life_of(store, clock, address="10.0.0.9")
    life.demand()
    life.step()
    stranger = Hello(gpu=GPU, boot_id="boot-of-another")
    assert store.hello(stranger, "nonce-of-the-stranger-1")[0] in ("ok", "unexpected")
    store.release(GPU, actor="ada")
    life.run(60)
    assert life.phase() is Phase.OFF
    assert store.hello(stranger, "nonce-of-the-stranger-2")[0] in ("unexpected", "earlier_boot")
    blind_after_start(life, ERRORS[0])
    life.cloud.starts.clear()
    life.cloud.boot = 1e6
    life.demand()
    life.run(5, speaks=False)
    store.hello(stranger, "nonce-of-the-stranger-3")
    life.run(10, speaks=False)
    assert life.phase() is Phase.STARTING


def test_a_denied_look_before_the_start_fails_at_once(store: Store, clock: VirtualClock) -> None:
    life = life_of(store, clock, address="10.0.0.9")
    life.cloud.refuse_describe = lambda: ERRORS[1]
    life.demand()
    life.run(5)
    assert life.phase() is Phase.FAILED
    assert life.cloud.starts == []


def test_a_denied_look_at_a_boot_fails_once_its_agent_is_overdue(
    store: Store, clock: VirtualClock
) -> None:
    life = life_of(store, clock, address="10.0.0.9")
    blind_after_start(life, ERRORS[1])
    life.demand()
    life.run(500, speaks=False, wanted=True)
    assert life.phase() is Phase.STARTING
    life.run(200, speaks=False, wanted=True)
    assert life.phase() is Phase.FAILED
    failure = life.now.failure
    assert failure is not None
    assert failure.code == "denied"
    life.run(5)  # its agent reports after all
    assert life.phase() is Phase.READY


def test_a_stale_answer_after_the_hello_does_not_fail_the_start(
    store: Store, clock: VirtualClock
) -> None:
    life = life_of(store, clock, keeps="192.0.2.7")
    life.demand()
    true = life.cloud.describe

    def stale() -> Observation:
        seen = true()
        if life.cloud.starts and life.clock() - life.cloud.starts[0] < 80:
            return Observation(Observed.STOPPED, "i-1", kept_address="192.0.2.7")
        return seen

    life.cloud.describe = stale  # type: ignore[method-assign]
    life.run(60)
    assert life.phase() is Phase.READY
    assert Phase.FAILED not in life.phases
    assert life.now.address == "192.0.2.7"
    assert len(life.cloud.starts) == 1
