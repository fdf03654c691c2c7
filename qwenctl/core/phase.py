"""The phases of a GPU, the states that its cloud reports, and the transitions between phases.

No other module compares phases as text.
"""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """The phases of a GPU. The values are stored and shown; they never change."""

    OFF = "off"
    STARTING = "starting"  # the start call is due or made; not running yet
    BOOTING = "booting"  # the instance runs; the agent has not said hello yet
    LOADING = "loading"  # the agent has said hello; the services are not ready yet
    READY = "ready"
    DRAINING = "draining"  # not wanted; it runs on until nobody can be using it
    STOPPING = "stopping"  # the stop call is due or made
    FAILED = "failed"  # something went wrong; see `Failure`

    @property
    def serves(self) -> bool:
        """Whether requests may be forwarded without asking the store."""
        return self is Phase.READY

    @property
    def waking(self) -> bool:
        """Whether the GPU is on its way up."""
        return self in (Phase.STARTING, Phase.BOOTING, Phase.LOADING)

    @property
    def running(self) -> bool:
        """Whether the instance is running, as far as anybody knows."""
        return self in (Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING)

    @property
    def settled(self) -> bool:
        """Whether the phase lasts until demand changes."""
        return self in (Phase.OFF, Phase.READY, Phase.FAILED)


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.OFF: frozenset({Phase.STARTING, Phase.BOOTING, Phase.STOPPING, Phase.FAILED}),
    Phase.STARTING: frozenset({Phase.BOOTING, Phase.STOPPING, Phase.OFF, Phase.FAILED}),
    Phase.BOOTING: frozenset(
        {Phase.LOADING, Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.FAILED}
    ),
    Phase.LOADING: frozenset(
        {Phase.READY, Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.FAILED}
    ),
    Phase.READY: frozenset(
        {Phase.LOADING, Phase.DRAINING, Phase.STOPPING, Phase.OFF, Phase.FAILED}
    ),
    Phase.DRAINING: frozenset(
        {Phase.READY, Phase.BOOTING, Phase.STOPPING, Phase.OFF, Phase.FAILED}
    ),
    Phase.STOPPING: frozenset({Phase.DRAINING, Phase.OFF, Phase.FAILED}),
    Phase.FAILED: frozenset({Phase.STARTING, Phase.BOOTING, Phase.STOPPING, Phase.OFF}),
}
"""The phases that may follow each phase; every recorded transition is among them."""


class Observed(str, Enum):
    """States of an instance, as its cloud reports them."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ABSENT = "absent"  # no such instance
    UNKNOWN = "unknown"  # the cloud could not be asked

    @property
    def gone(self) -> bool:
        """Whether nothing runs, and nothing is about to."""
        return self in (Observed.STOPPED, Observed.ABSENT)

    @property
    def absent(self) -> bool:
        return self is Observed.ABSENT

    @property
    def on(self) -> bool:
        """Whether it runs or is about to."""
        return self in (Observed.STARTING, Observed.RUNNING)


class Guard(str, Enum):
    """Conditions that the store checks in the script that makes a transition."""

    NONE = "none"
    WANTED = "wanted"  # an unexpired lease and no block
    UNWANTED = "unwanted"  # no unexpired lease, or a block
    IDLE = "idle"  # unwanted, no running work, and the phase has lasted the drain time
    NO_WORK = "no_work"  # no running work and the phase has lasted the drain time
