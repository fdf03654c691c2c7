"""One GPU with one controller, moved on a second at a time; for tests that need no interleavings."""

from __future__ import annotations

from qwenctl.clouds.base import Observation
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.protocol.messages import Report
from qwenctl.store.store import Store
from tests.simulation.puppets import GPU, Cloud
from tests.simulation.world import Node
from tests.support.virtual_time import VirtualClock

__all__ = ["IDLE", "Life"]

IDLE = 600.0


class LyingCloud(Cloud):
    """A cloud whose next reading may be wrong."""

    lie: Observed | None = None

    def describe(self) -> Observation:
        lie, self.lie = self.lie, None
        return Observation(lie, "i-1") if lie else super().describe()


class Life:
    """One GPU with one controller; time passes a second at a time."""

    def __init__(self, store: Store, clock: VirtualClock, **latencies: float) -> None:
        self.store, self.clock = store, clock
        self.gpu = GpuConfig(idle_timeout=IDLE)
        self.cloud = LyingCloud(clock, **latencies)
        self.node = Node(store, clock, self.cloud)
        self.controller = Controller(GPU, self.gpu, store, self.cloud, monotonic=clock)
        self.phases: list[Phase] = []

    @property
    def now(self) -> Snapshot:
        return self.store.snapshot(GPU)

    def phase(self) -> Phase:
        """The phase as of this call."""
        return self.now.phase

    @property
    def leases(self) -> list[str]:
        return [lease.name for lease in self.now.leases]

    def demand(self, who: str = "ada") -> None:
        self.store.demand(GPU, f"request:{who}", IDLE, reason="test", actor=who)

    def step(self) -> Phase:
        self.controller.step()
        self.phases.append(self.now.phase)
        return self.phases[-1]

    def run(self, seconds: float, *, speaks: bool = True, wanted: bool = False) -> None:
        end = self.clock() + seconds
        while self.clock() < end:
            if wanted:
                self.demand()
            self.step()
            if speaks:
                self.node.speak()
            self.clock.advance(1.0)

    def look(self) -> Phase:
        """Somebody asks the controller to look at the cloud, and it does."""
        self.clock.advance(self.cloud.observe_interval)
        self.store.look(GPU, actor="test", cause="test")
        self.clock.advance(0.01)
        return self.step()

    def wake(self) -> None:
        self.demand()
        self.run(10)
        assert self.now.phase is Phase.READY
        self.phases.clear()

    def report(self, active: int) -> str:
        """What the agent goes on saying while its instance stops."""
        node = self.now.node
        report = Report(
            gpu=GPU,
            boot_id=node["boot_id"],
            start_seq=int(node["start_seq"]),
            state="ready",
            active=active,
        )
        return self.store.report(report, f"nonce-{self.clock():.3f}", heartbeat=5.0)[0]
