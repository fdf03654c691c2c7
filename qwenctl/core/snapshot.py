"""The state of one GPU at one moment, as the store has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, cast

from qwenctl.core import leases
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import NodeView
from qwenctl.core.phase import Observed, Phase
from qwenctl.protocol.messages import Report


@dataclass(frozen=True)
class Lease:
    """A reason to be on (lease) or off (block)."""

    name: str
    expiry: float
    """``inf`` for a block without end."""
    reason: str = ""
    actor: str = ""
    since: float | None = None
    answered_at: float | None = None
    """When the node last answered what a proxy asked it; None: the lease vouches for itself."""

    @property
    def kind(self) -> str:
        """Its kind; see `qwenctl.core.leases`."""
        return leases.kind_of(self.name)

    @property
    def is_work(self) -> bool:
        """Whether it stands for running work, which only ``--now`` may end."""
        return self.kind in leases.WORK


@dataclass(frozen=True)
class Lock:
    """A controller's right to act on one GPU, until it expires."""

    owner: str
    epoch: int


class Outcome(str, Enum):
    """The outcome of a controller's write."""

    OK = "ok"
    EPOCH = "epoch"  # no longer the leader
    PHASE = "phase"  # the phase has changed since
    GUARD = "guard"  # the guard no longer holds


@dataclass(frozen=True)
class Admission:
    """The store's answer to a request."""

    phase: Phase
    start_seq: int
    blocked_by: str = ""
    released: bool = False
    """Whether the request began before the last `down`, which gave it up."""


@dataclass(frozen=True)
class Touch:
    """Activity of one client to write back."""

    lease: str
    ttl: float
    began_ago: float
    """Seconds since the request began; a request older than the last `down` extends nothing."""


@dataclass(frozen=True)
class Snapshot:
    """Everything known of one GPU at one moment."""

    gpu: str
    now: float
    state: Mapping[str, str]
    leases: tuple[Lease, ...] = ()
    blocks: tuple[Lease, ...] = ()
    node: Mapping[str, str] = field(default_factory=dict)
    lock: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def phase(self) -> Phase:
        return Phase(self.state.get("phase") or Phase.OFF)

    @property
    def observed(self) -> Observed:
        """The instance's state as the cloud reported it last."""
        return Observed(self.state.get("observed") or Observed.UNKNOWN)

    @property
    def since(self) -> float:
        return seconds_of(self.state.get("since")) or 0.0

    @property
    def wanted(self) -> bool:
        return bool(self.leases) and not self.blocks

    @property
    def working(self) -> bool:
        return any(lease.is_work for lease in self.leases)

    @property
    def unanswered(self) -> float:
        """For how long, in seconds, nothing but open requests has vouched for the running work."""
        work = [lease.answered_at for lease in self.leases if lease.is_work]
        known = [answered for answered in work if answered is not None]
        return max(0.0, self.now - max(known)) if known and len(known) == len(work) else 0.0

    @property
    def start_seq(self) -> int:
        return int(self.state.get("start_seq") or 0)

    @property
    def address(self) -> str:
        return self.state.get("address", "")

    @property
    def failure(self) -> Failure | None:
        text = self.state.get("failure")
        return Failure.decode(text) if text else None

    @property
    def released_at(self) -> float:
        return seconds_of(self.state.get("released_at")) or 0.0

    def given_up(self, name: str, opens: float) -> bool:
        """Return whether somebody ended this window of a schedule before its time."""
        held = any(entry.name == name for entry in (*self.leases, *self.blocks))
        last = self.time(f"window:{name}")
        return not held and last is not None and opens <= last + 0.0005

    @property
    def next_expiry(self) -> float | None:
        """When the first lease or block ends; None if none does."""
        ends = [lease.expiry for lease in (*self.leases, *self.blocks)]
        finite = [end for end in ends if end != float("inf")]
        return min(finite) if finite else None

    def time(self, name: str) -> float | None:
        """Return a time of the state, in seconds."""
        return seconds_of(self.state.get(name))

    def node_time(self, name: str) -> float | None:
        """Return a time of the node's record, in seconds."""
        return seconds_of(self.node.get(name))

    @property
    def node_view(self) -> NodeView:
        seen = seconds_of(self.node.get("seen_at"))
        state = self.node.get("state", "")
        return NodeView(
            hello="boot_id" in self.node,
            state=cast(Any, state if state in ("loading", "ready", "failed") else ""),
            error=self.node.get("error", ""),
            heartbeat_age=None if seen is None else max(0.0, self.now - seen),
            interrupted=self.interrupted_at is not None,
            vouched=self._vouched,
        )

    @property
    def _vouched(self) -> bool:
        """Whether the node's boot belongs to our accepted start, or to what was seen running."""
        boot, seq = self.node.get("boot_id"), self.state.get("start_seq", "")
        if boot is None or boot == self.state.get("stranger"):
            return False
        ours = self.state.get("accepted_seq") == seq or self.phase.running
        return ours and self.node.get("start_seq") == (seq or "0")

    @property
    def interrupted_at(self) -> float | None:
        """When the node reported that the cloud takes the instance back."""
        return seconds_of(self.node.get("interrupted_at"))

    @property
    def interruption_ends(self) -> float | None:
        """When the cloud takes the instance back, as announced."""
        return seconds_of(self.node.get("interruption_ends"))

    @cached_property
    def report(self) -> Report | None:
        """The node's last report, without its log lines."""
        text = self.node.get("report")
        return Report.model_validate_json(text) if text else None

    @property
    def clock_steps(self) -> int:
        """How many steps of the store's clock were absorbed: times read before the last are void."""
        return int(self.lock.get("steps", 0))

    @property
    def leader(self) -> str:
        """The owner of the controller lock; empty if nobody holds it."""
        expiry = seconds_of(self.lock.get("expiry")) or 0.0
        return self.lock.get("owner", "") if expiry > self.now else ""


def seconds_of(milliseconds: str | None) -> float | None:
    return None if milliseconds in (None, "") else float(milliseconds) / 1000
