"""Time limits of the lifecycle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """Bounds in seconds. The defaults suit a cloud; the local provider is faster."""

    drain: float = 4.0
    """How long nobody must have wanted the GPU before it is stopped. More than the snapshot age
    plus the write-back interval of a proxy, 1 s each
    (docs/architecture.md#why-no-request-is-forwarded-into-a-stop), so never under 3."""
    start: float = 300.0
    """How long the cloud may take from an accepted start to running."""
    boot: float = 300.0
    """How long the agent may take from running to hello."""
    load: float = 1200.0
    """How long the services may take from hello to ready."""
    call_grace: float = 15.0
    """How long the cloud may go on showing the old state after it accepted a call."""
    heartbeat: float = 20.0
    """A heartbeat older than this makes the controller look at the cloud."""
    vouch: float = 12.0
    """How long an agent is given to report running work to a store that may have forgotten it: more
    than a heartbeat, a hello and the agent's longest pause between two tries."""
    node_lost: float = 180.0
    """A heartbeat older than this means that the agent is gone; requests that nobody has answered for
    as long are then no work any more."""
    retry: float = 10.0
    """The first wait after a failure; doubles with each further one."""
    retry_max: float = 300.0
    stable: float = 60.0
    """A GPU that was ready for less than this counts as a failed attempt when it dies."""
    patience: float = 5.0
    """As many times longer without an agent: a WebUI at work may answer no probe."""
    spot_stable: float = 600.0
    """The same for one that the cloud takes back (spot), from the second in a row on."""
    complaint: float = 7.5
    """The same where the cloud says that the instance is gone and a connection to it has failed."""
    gone: float = 60.0
    """How long the cloud must have said that the instance is gone, if only running work speaks
    against it. An agent that reports refutes it for as long as it does."""
    observe_moving: float = 2.0
    """How old an observation may be right after a change; half the time since then later on, so
    that a long boot costs few calls."""
    observe_slow: float = 15.0
    """How old an observation may be in a phase that has been changing for long."""
    observe_settled: float = 60.0
    """How old an observation may be at most while nothing happens."""
