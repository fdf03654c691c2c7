"""One GPU on moto's EC2: the real controller, store and provider, and a simulated agent.

The controller's clock is virtual, a step a second; the cloud's states change when the test says so.
The HTTP between them is real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.store.store import Store
from tests.simulation.puppets import GPU
from tests.simulation.world import Node
from tests.support.faults import FaultProxy
from tests.support.moto_cloud import MotoCloud
from tests.support.virtual_time import VirtualClock

NEVER = 3600.0


@dataclass
class Machine:
    """The instance as the simulated node knows it."""

    cloud: MotoCloud
    instance_id: str
    boots: int = 0

    @property
    def name(self) -> str:
        return self.instance_id

    @property
    def state(self) -> Observed:
        running = self.cloud.state(self.instance_id) == "running"
        return Observed.RUNNING if running else Observed.STOPPED

    def settle(self) -> None:
        """What is under way in the cloud has come to its end."""
        state = self.cloud.state(self.instance_id)
        if state == "pending":
            self.boots += 1
            self.cloud.happen(self.instance_id, "running")
        elif state == "stopping":
            self.cloud.happen(self.instance_id, "stopped", "Client.UserInitiatedShutdown")


@dataclass
class Life:
    """One GPU; time passes a second at a time."""

    store: Store
    clock: VirtualClock
    cloud: MotoCloud
    faults: FaultProxy
    machine: Machine
    controllers: list[Controller]
    node: Node
    phases: list[Phase] = field(default_factory=list)

    @property
    def now(self) -> Snapshot:
        return self.store.snapshot(GPU)

    def demand(self) -> None:
        self.store.demand(GPU, "request:ada", NEVER, reason="test", actor="ada")

    def run(self, seconds: int, *, settle: float = 5, until: Phase | None = None) -> None:
        """Let time pass; the cloud finishes what it does every ``settle`` seconds."""
        for second in range(seconds):
            if self.now.phase is until:
                return
            for controller in self.controllers:
                controller.step()
            self.phases.append(self.now.phase)
            if settle and second % settle == settle - 1:
                self.machine.settle()
            self.node.speak()
            self.clock.advance(1.0)
        assert until is None, f"{self.now.phase.value}, not {until.value}, after {seconds} s"

    def took_effect(self, verb: str) -> int:
        return self.cloud.journal(self.machine.instance_id, verb)


Live = Callable[..., Life]
