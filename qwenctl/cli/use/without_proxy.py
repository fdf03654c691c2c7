"""What `up` and `prewarm run` do where no controller runs.

Nobody has followed the instance since the last command: the recorded phase says what it was then.
So the cloud is asked before anything is believed, and what ended unseen is recorded as off.
"""

from __future__ import annotations

import time
from dataclasses import replace

from qwenctl.cli.common.context import Target
from qwenctl.cli.use.follow import Follower, Reconciling
from qwenctl.cli.use.wake_errors import wake_error
from qwenctl.clouds.base import Denied, Provider, ProviderError
from qwenctl.config.providers import make_provider
from qwenctl.control.controller import LOCK_MARGIN, owner_name
from qwenctl.core import failures
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Guard, Move, Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import ExitCode, UserError

__all__ = ["catch_up", "looked_in_vain", "make_due_call", "new_failure", "seen_on"]

CALL_SECONDS = 60.0
"""How long the start or stop call may take to be made."""


def make_due_call(target: Target, provider: Provider | None = None) -> str:
    """Make the start or stop call that is due, if no controller runs, and wait for nothing more.

    What runs as wanted is left alone. Returns the name under which our own controller acted; empty
    if there was none.

    Raises:
        UserError: the call was refused, or has not been made in time (`ExitCode.TIMEOUT`).
    """

    first = target.store.snapshot(target.name)
    if first.leader or catch_up(target, first, provider):
        return ""
    ignores = target.gpu.found_running == "ignore"
    last = first
    with Follower(target) as follower, Reconciling(target, follower, provider=provider) as ours:
        deadline = time.monotonic() + CALL_SECONDS
        for last in follower.snapshots(every=5.0, deadline=deadline):
            if _settled(last, first.now, ignores=ignores):
                return ours.owner
            if failure := new_failure(first, last):
                raise wake_error(target.name, failure)
    if not last.wanted and last.working:
        return ours.owner  # work is still running; it is stopped by whoever comes next
    if last.phase is Phase.FAILED and last.failure:
        raise wake_error(target.name, last.failure)
    verb = "start" if last.wanted else "stop"
    raise UserError(
        f"{target.name}: the {verb} call was not made within {CALL_SECONDS:.0f} s", ExitCode.TIMEOUT
    )


def catch_up(target: Target, first: Snapshot, provider: Provider | None = None) -> bool:
    """Ask the cloud, and record as off what has ended unseen; whether nothing is due.

    Raises:
        UserError: the cloud may not be asked about what is recorded as on. (Of what is off, the
            reconciler says so.)
    """

    provider = provider or make_provider(target.name, target.gpu, target.config)
    starting = first.phase is Phase.STARTING
    try:
        seen = provider.describe()
    except ProviderError as error:
        if (
            isinstance(error, Denied)
            and first.phase not in (Phase.OFF, Phase.FAILED)
            and not starting
        ):
            failure = Failure(error.code, str(error), 1, 0.0, instance_is_bad=False)
            raise wake_error(target.name, failure) from None
        return False  # the reconciler knows what each refusal means
    gone = seen.state in (Observed.STOPPED, Observed.ABSENT)
    if seen.surplus:
        return False
    if not first.wanted:
        ignored = target.gpu.found_running == "ignore" and seen.state is Observed.RUNNING
        return first.phase is Phase.OFF and (gone or ignored)
    called = first.time("called_at")
    if seen.state in (Observed.STARTING, Observed.RUNNING):
        return _up(first) or (starting and called is not None)
    # A cloud may still show the old state of one whose start it has just accepted.
    fresh = called is not None and first.now - called < target.gpu.timing.call_grace
    begun = starting or _up(first) or first.phase is Phase.DRAINING
    if gone and begun and not fresh:
        _record_off(target, first)
    return False


def _up(snapshot: Snapshot) -> bool:

    return snapshot.phase in (Phase.BOOTING, Phase.LOADING, Phase.READY)


def _record_off(target: Target, first: Snapshot) -> None:
    """What ended while nobody looked is no failure of the next start, which would have to wait."""

    store, name = target.store, target.name
    lock, _, _ = store.acquire(name, owner_name(), LOCK_MARGIN)
    if lock is None:
        return  # somebody else is at it
    now = store.snapshot(name)
    if (now.since, now.time("called_at")) == (first.since, first.time("called_at")):
        off = Move(Phase.OFF, "stopped_outside", Guard.NONE)
        store.transition(name, lock, first.phase, off, drain=0.0, idle_timeout=0.0)
    store.release_lock(name, lock)


def seen_on(snapshot: Snapshot, since: float) -> bool:
    """Whether the cloud was seen since then to have it on."""

    looked = snapshot.time("observed_at")
    on = snapshot.state.get("observed") in (Observed.STARTING, Observed.RUNNING)
    return on and looked is not None and looked > since


def _settled(snapshot: Snapshot, since: float, *, ignores: bool) -> bool:
    """Whether the call was made since then, or the cloud was seen since then to need none.

    ``ignores``: an instance that is found running is left alone.
    """

    called, looked = snapshot.time("called_at"), snapshot.time("observed_at")
    calls = snapshot.phase is (Phase.STARTING if snapshot.wanted else Phase.STOPPING)
    if calls and called is not None and called > since:
        return True
    on = seen_on(snapshot, since)
    if snapshot.wanted:
        return on and (calls or _up(snapshot))
    if looked is None or looked <= since:
        return False
    if calls:
        return snapshot.state.get("observed") == Observed.STOPPING
    return snapshot.phase is Phase.OFF and (not on or ignores)


def new_failure(first: Snapshot, snapshot: Snapshot) -> Failure | None:
    """A failure since the first snapshot; an earlier one is being retried already."""

    if snapshot.phase is not Phase.FAILED or snapshot.failure is None:
        return None
    if snapshot.failure != first.failure:
        return snapshot.failure
    if snapshot.failure.code == failures.DENIED and looked_in_vain(first, snapshot):
        return replace(snapshot.failure, message=snapshot.state["observe_error"])
    return None


def looked_in_vain(first: Snapshot, snapshot: Snapshot) -> bool:
    """Whether the cloud could not be asked since the first snapshot: then nothing is tried at all."""
    looked = (snapshot.time("observed_at") or 0.0) >= first.now
    return looked and bool(snapshot.state.get("observe_error"))
