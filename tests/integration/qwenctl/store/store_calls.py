"""The store's calls as tests make them, for one GPU."""

from __future__ import annotations

from typing import Any

from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Phase
from qwenctl.core.snapshot import Lock, Outcome, Snapshot
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store

GPU = "main"


P = Phase


def snap(store: Store) -> Snapshot:
    return store.snapshot(GPU)


def move(store: Store, lock: Lock, to: Phase, guard: Guard = Guard.NONE, **fields: Any) -> Outcome:
    """A transition from the present phase, with a drain time of 4 s."""
    step = Move(to, fields.pop("cause", "test"), guard, **fields)
    return store.transition(GPU, lock, snap(store).phase, step, drain=4.0, idle_timeout=60.0)


PATHS = {
    P.OFF: (),
    P.STARTING: (P.STARTING,),
    P.BOOTING: (P.STARTING, P.BOOTING),
    P.LOADING: (P.STARTING, P.BOOTING, P.LOADING),
    P.READY: (P.STARTING, P.BOOTING, P.LOADING, P.READY),
    P.DRAINING: (P.STARTING, P.BOOTING, P.LOADING, P.READY, P.DRAINING),
    P.STOPPING: (P.STARTING, P.BOOTING, P.STOPPING),
    P.FAILED: (P.FAILED,),
}


def bring(store: Store, lock: Lock, phase: Phase) -> None:
    """Move from off to that phase, the node reporting what it would."""
    for step in PATHS[phase]:
        assert move(store, lock, step) is Outcome.OK
        if step is P.BOOTING:
            assert hello(store)[0] == "ok"
        if step is P.LOADING:
            assert report(store)[0] == "ok"
    assert snap(store).phase is phase


_nonces = iter(range(10**9))


def nonce() -> str:
    return f"nonce-{next(_nonces):012d}"


def hello(store: Store, boot: str = "boot-one", **fields: Any) -> tuple[str, int]:
    return store.hello(Hello(gpu=GPU, boot_id=boot, agent_version="1"), nonce(), **fields)


def report(
    store: Store, state: Any = "ready", *, boot: str = "boot-one", seq: int = 1, **fields: Any
) -> tuple[str, int]:
    message = Report(gpu=GPU, boot_id=boot, start_seq=seq, state=state, **fields)
    return store.report(message, nonce(), heartbeat=5.0)[:2]


def demand(store: Store, client: str = "ada", ttl: float = 60.0, **fields: Any) -> Any:
    return store.demand(GPU, f"request:{client}", ttl, reason="request", actor=client, **fields)


def leases(store: Store) -> dict[str, float]:
    """Name → seconds left."""
    now = snap(store)
    return {lease.name: round(lease.expiry - now.now, 3) for lease in now.leases}


def kinds(store: Store) -> list[str]:
    return [event.kind for event in store.events(GPU)]
