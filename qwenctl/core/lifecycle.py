"""The lifecycle of one GPU: the next step, by what is known of it.

Pure: no I/O, no clock, no Redis. Times are seconds on the
store's clock, durations seconds.

The controller builds a `View`, calls `decide`, performs the one step that it returns, and looks
again. Nothing is remembered between two calls, so another replica can continue after a crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Union

from qwenctl.core import failures
from qwenctl.core.failures import Failure
from qwenctl.core.phase import Guard, Observed, Phase
from qwenctl.core.timings import Timings as Timings


@dataclass(frozen=True)
class NodeView:
    """The state that the agent of the present boot reports; unset before its hello."""

    hello: bool = False
    state: Literal["loading", "ready", "failed", ""] = ""
    error: str = ""
    heartbeat_age: float | None = None
    interrupted: bool = False
    """The cloud has announced that it takes this instance back (spot)."""
    vouched: bool = False
    """Its boot said hello after the cloud accepted our start, or had been seen running; an
    instance that was there before does not count."""


@dataclass(frozen=True)
class View:
    """The input of `decide`."""

    phase: Phase
    since: float
    wanted: bool
    """An unexpired lease, and no block."""
    working: bool
    """Running work: an unexpired `inflight:` or `busy:` lease."""
    unanswered: float = field(default=0.0, kw_only=True)
    """For how long only requests without any answer have stood for that work."""
    blocked: bool
    force_stop: bool
    """Stop even under running work: by `down --now` or `block --now`."""
    observed: Observed
    observed_at: float | None
    observed_reason: str = ""
    gone_since: float | None = None
    """The time of the first of the last looks in a row that saw no running instance."""
    known_since: float = 0.0
    """When this epoch began, or its connection to the store: what was written before may be lost or
    stale, leases of running work too."""
    found_at: float | None = None
    """When the instance was found running that nobody had started; None if a start call began it."""
    unheard: bool = False
    """Nobody can receive an agent's report: no proxy is connected to the store."""
    seen_on: bool = True
    """Whether a look of this epoch has seen it running: only that can contradict another."""
    asked_at: float | None = None
    """When somebody last asked for a look, as after a failed connection to the node."""
    heard_at: float | None = None
    """The time of the agent's last report."""
    denied: bool = False
    """The cloud denied the look for want of permission: a person has to act."""
    denied_as: str = failures.DENIED
    """The failure code of that."""
    called_at: float | None = None
    """When the cloud last accepted (or may have accepted) the call of this phase."""
    call_error: str = ""
    """Why it is uncertain that the cloud accepted that call."""
    node: NodeView = NodeView()
    failure: Failure | None = None
    ready_at: float | None = None
    found_running: Literal["adopt", "stop", "ignore"] = "adopt"
    addressed: bool = False
    """Whether the node's address is known: configured, or named by the cloud at some time."""
    agentless: bool = False
    """No agent: `qwenctl.control.agentless` reports in its place."""


@dataclass(frozen=True)
class Move:
    """Record a transition, then decide again."""

    to: Phase
    cause: str
    guard: Guard = Guard.NONE
    failure: Failure | None = None
    """The failure to keep with the new phase; None clears it."""
    adopt: bool = False
    """Grant the found instance one idle timeout in the same script."""


@dataclass(frozen=True)
class Call:
    """Make the phase's call to the provider."""

    verb: Literal["start", "stop"]


@dataclass(frozen=True)
class Observe:
    """Ask the cloud, then decide again."""


@dataclass(frozen=True)
class Wait:
    """Wait so many seconds, or until something changes."""

    seconds: float
    why: str


Step = Union[Move, Call, Observe, Wait]


def backoff(attempts: int, timings: Timings) -> float:
    """Return the seconds to wait after so many failed attempts in a row (1 or more)."""
    return float(min(timings.retry_max, timings.retry * 2 ** min(max(attempts, 1) - 1, 16)))


def failed(
    view: View, timings: Timings, now: float, code: str, message: str, *, instance_is_bad: bool
) -> Move:
    """Return the transition to `failed`, with the next retry time."""
    before = 0 if view.failure is None or _stable(view, timings, now) else view.failure.attempts
    attempts = before + 1
    return Move(
        Phase.FAILED,
        code,
        failure=Failure(code, message, attempts, now + backoff(attempts, timings), instance_is_bad),
    )


def _taken_back(view: View, timings: Timings, now: float) -> Failure | None:
    """Return the failure that an interruption counts as.

    The next start follows a first interruption at once. After further ones, each soon after its
    start, the pauses get longer, or the owner would pay for boots alone.
    """
    ready_at = now if view.ready_at is None else view.ready_at
    if not view.wanted or now - ready_at >= timings.spot_stable:
        return None
    before = view.failure.attempts if view.failure and view.failure.is_interruption else 0
    pause = backoff(before, timings) if before else 0.0
    why = "the cloud took the instance back soon after its start"
    code = failures.SPOT_INTERRUPTION
    return Failure(code, why, before + 1, now + pause, instance_is_bad=False)


def _ended(failure: Failure | None) -> Phase:
    """Return the phase after a stop: `failed` where the next start has to wait."""
    waits = failure and not (failure.is_interruption and failure.attempts == 1)
    return Phase.FAILED if waits else Phase.OFF


def _stable(view: View, timings: Timings, now: float) -> bool:
    """Return whether this boot was ready for long enough to count as a success."""
    return view.ready_at is not None and now - view.ready_at >= timings.stable


def decide(view: View, timings: Timings, now: float) -> Step:
    """Return the next step for this GPU.

    In state X, with demand / without demand:

    =========  =======================================  ==========================================
    off        start (or take over one found running)   stay; an instance found running is adopted
    starting   wait for running                         give up before the call, else as booting
    booting    wait for the agent's hello               drain
    loading    wait for readiness                       drain
    ready      stay                                     drain
    draining   back to ready                            stop once idle for the drain time
    stopping   finish the stop first, then off          finish the stop
    failed     stop a bad instance, retry at retry_at   stop a bad instance, then off
    =========  =======================================  ==========================================

    An instance that the cloud is about to take back drains in spite of demand, is stopped as soon
    as no work runs on it, and by that demand is started again.
    """
    taken_back = view.failure is not None and view.failure.is_interruption
    calm = timings.spot_stable if taken_back else timings.stable
    ready_at = now if view.ready_at is None else view.ready_at
    if view.phase in (Phase.READY, Phase.DRAINING) and now - ready_at >= calm:
        view = replace(view, failure=None)  # stable: earlier failures no longer count
    if view.observed_at is None:
        return Observe()
    if view.observed is Observed.UNKNOWN and (move := _by_its_agent(view, timings)):
        return move
    # Observations from before an accepted call are void; a cloud shows its effect with a delay.
    due = _next_look(view, timings, now, max(view.observed_at, view.called_at or 0.0))
    if now >= due:
        return Observe()
    if view.observed is Observed.UNKNOWN:
        if view.denied and view.wanted and not _may_still_report(view, timings, now):
            return failed(
                view,
                timings,
                now,
                view.denied_as,
                view.observed_reason,
                instance_is_bad=False,
            )
        if view.node.interrupted and view.phase in (Phase.BOOTING, Phase.LOADING, Phase.READY):
            # The node reports it; draining stops nothing.
            return Move(Phase.DRAINING, failures.SPOT_INTERRUPTION, failure=view.failure)
        return Wait(due - now, "the cloud cannot be asked; nothing is started or stopped blind")
    step = _BY_PHASE[view.phase](view, timings, now)
    return replace(step, seconds=min(step.seconds, due - now)) if isinstance(step, Wait) else step


def _vouches(view: View, timings: Timings) -> bool:
    """Return whether the agent of the boot that we started reports."""
    age = view.node.heartbeat_age
    present = view.node.vouched and age is not None and age <= timings.heartbeat
    return present and not view.agentless and not view.force_stop


def _by_its_agent(view: View, timings: Timings) -> Move | None:
    """Return the transition on the way to `ready` that the agent's signed word alone allows.

    While the cloud cannot be asked, that is proof enough that the instance runs. It never stops.
    """
    node, phase = view.node, view.phase
    if not _vouches(view, timings) or node.interrupted:
        return None
    if phase is Phase.STARTING:
        return Move(Phase.BOOTING, "hello", failure=view.failure)
    if phase is Phase.FAILED and view.failure is not None and not view.failure.instance_is_bad:
        return Move(Phase.BOOTING, "started_after_all", failure=view.failure)
    if phase is Phase.BOOTING:
        return Move(Phase.LOADING, "hello", failure=view.failure)
    if phase is Phase.LOADING and node.state == "ready" and view.addressed:
        return Move(Phase.READY, "ready", failure=view.failure)
    if phase is Phase.READY and node.state == "loading":
        return Move(Phase.LOADING, "service_restarted", failure=view.failure)
    if phase is Phase.DRAINING and view.wanted:
        back = Phase.READY if node.state == "ready" else Phase.BOOTING
        return Move(back, "demand", Guard.WANTED, view.failure)
    return None


def _may_still_report(view: View, timings: Timings, now: float) -> bool:
    """Return whether a denied look can wait, because the agent may say that the instance runs."""
    if view.phase is Phase.OFF:
        return False
    if view.phase is not Phase.STARTING:
        return True
    if view.called_at is None or view.call_error or view.agentless:
        return False
    return now - view.called_at <= timings.start + timings.boot


def _next_look(view: View, timings: Timings, now: float, seen_at: float) -> float:
    """Return when to ask the cloud again, if it was asked at ``seen_at``."""
    if view.observed is Observed.UNKNOWN:  # nothing goes on until the cloud answers
        hurry = view.wanted and not view.denied
        return seen_at + (timings.observe_moving if hurry else timings.observe_slow)
    heard = view.node.heartbeat_age
    expected = view.phase is Phase.READY or view.node.interrupted
    if expected and (heard or 0.0) > timings.heartbeat:
        return seen_at + timings.observe_moving
    reports = heard is not None and heard <= timings.heartbeat
    if view.observed.gone and view.gone_since is not None and view.phase.running:
        doubted = (now - view.gone_since) / 2
        return seen_at + min(timings.observe_slow, max(timings.observe_moving, doubted))
    quiet = view.phase.settled or view.phase is Phase.DRAINING
    quiet = quiet or (view.phase is Phase.LOADING and reports)  # a node that reports runs
    uncalled = view.phase is Phase.STARTING and view.called_at is None
    if quiet or (uncalled and view.observed is Observed.STOPPED):  # the start call looks for itself
        # All GPUs at the same moment, so that one call asks for all (`qwenctl.clouds.batch`).
        return (seen_at // timings.observe_settled + 1) * timings.observe_settled
    age = (now - max(view.since, view.called_at or 0.0)) / 2
    return seen_at + min(timings.observe_slow, max(timings.observe_moving, age))


def _off(view: View, timings: Timings, now: float) -> Step:
    if view.observed is Observed.STOPPING:
        return Wait(timings.observe_moving, "the instance is being stopped by somebody else")
    if view.observed in (Observed.RUNNING, Observed.STARTING):
        return _found_running(view, timings)
    if not view.wanted:
        return Wait(timings.observe_settled, "nobody needs it")
    if view.observed is Observed.ABSENT:
        return failed(view, timings, now, failures.NOT_FOUND, _absent(view), instance_is_bad=False)
    return Move(Phase.STARTING, "demand", Guard.WANTED, failure=view.failure)


def _found_running(view: View, timings: Timings) -> Step:
    if view.observed is Observed.STARTING:
        return Wait(timings.observe_moving, "the instance is being started by somebody else")
    if view.wanted:
        return Move(Phase.BOOTING, "found_running", Guard.WANTED)
    if view.found_running == "ignore":
        return Wait(timings.observe_settled, "found running, left alone (found_running = ignore)")
    # Taken over even to be stopped: proxies and the agent can vouch for running work by the drain.
    keep = view.found_running == "adopt" and not view.blocked
    return Move(Phase.BOOTING, "found_running", adopt=keep)


def _starting(view: View, timings: Timings, now: float) -> Step:
    if view.observed is Observed.RUNNING:
        return Move(Phase.BOOTING, "running", failure=view.failure)
    if view.observed.gone and _vouches(view, timings):
        if (view.observed_at or 0.0) < (view.called_at or 0.0):
            return Observe()  # the hello says that the call has had its effect
        return Move(Phase.BOOTING, "hello", failure=view.failure)  # a stale answer
    if view.observed is Observed.ABSENT:
        return failed(view, timings, now, failures.NOT_FOUND, _absent(view), instance_is_bad=False)
    if view.force_stop and view.observed is Observed.STARTING:
        return Move(Phase.STOPPING, "down_now")
    if view.observed is not Observed.STOPPED:
        if now - (view.called_at or view.since) > timings.start:
            message = f"the instance is still {view.observed.value} {timings.start:.0f} s after the start call"
            return failed(view, timings, now, failures.START_TIMEOUT, message, instance_is_bad=True)
        return Wait(timings.observe_moving, f"the instance is {view.observed.value}")
    if view.called_at is None:
        if not view.wanted:
            return Move(Phase.OFF, "demand_gone", Guard.UNWANTED)
        if now - view.since > timings.start:
            message = f"the cloud has refused the start call for {timings.start:.0f} s"
            return failed(
                view, timings, now, failures.START_TIMEOUT, message, instance_is_bad=False
            )
        return Call("start")
    if now - view.called_at < timings.call_grace:
        return Wait(min(1.0, timings.observe_moving), "the start call was accepted")
    if view.observed_at is not None and view.observed_at < view.called_at:
        return Observe()
    message = (
        view.call_error
        or view.observed_reason
        or "the cloud accepted the start, but the instance is still stopped"
    )
    return failed(view, timings, now, failures.START_FAILED, message, instance_is_bad=False)


def _refuted(view: View, timings: Timings, now: float) -> bool:
    """Whether the agent reports although the cloud says that its instance is gone.

    It has less time for that if a connection to the node has failed since its last report.
    An answer of the cloud may be stale, partial, or cut down to what we may see
    (https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
    """
    if view.heard_at is None:
        return False
    asked = view.asked_at is not None and view.asked_at > view.heard_at
    return now - view.heard_at <= (timings.complaint if asked else timings.heartbeat)


def _in_doubt(view: View, timings: Timings, now: float) -> bool:
    """Whether too little speaks for it yet that the instance is gone."""
    if _refuted(view, timings, now):
        return True
    seen_for = (view.observed_at or 0.0) - (view.gone_since or 0.0)
    agree = timings.observe_moving if view.seen_on else 0.0
    return seen_for < (timings.gone if view.working else agree)


def _lost(view: View, timings: Timings, now: float) -> Step | None:
    """Return the step for an instance that no longer runs; None if it runs."""
    gone = view.observed.gone
    if view.node.interrupted and (gone or view.observed is Observed.STOPPING):
        failure = _taken_back(view, timings, now)
        to = _ended(failure) if gone else Phase.STOPPING
        return Move(to, failures.SPOT_INTERRUPTION, failure=failure)
    stopping = view.observed is Observed.STOPPING
    if not stopping and (not gone or _in_doubt(view, timings, now)):
        return None
    if not view.wanted or _stable(view, timings, now):
        to = Phase.STOPPING if stopping else Phase.OFF
        return Move(to, "stopped_outside", failure=view.failure if stopping else None)
    message = (
        view.observed_reason or "the instance stopped by itself or was stopped by somebody else"
    )
    move = failed(view, timings, now, failures.INSTANCE_LOST, message, instance_is_bad=False)
    # Seen in time or not, it is a failed attempt, or boots that end at once follow without a pause.
    return replace(move, to=Phase.STOPPING, cause="stopped_outside") if stopping else move


def _up(view: View, timings: Timings, now: float) -> Step | None:
    """Return a step that booting, loading and ready have in common; None: go on."""
    if lost := _lost(view, timings, now):
        return lost
    if view.force_stop:
        return Move(Phase.STOPPING, "down_now")
    if view.node.interrupted:
        return Move(Phase.DRAINING, failures.SPOT_INTERRUPTION, failure=view.failure)
    if not view.wanted:
        cause = "blocked" if view.blocked else "idle"
        return Move(Phase.DRAINING, cause, Guard.UNWANTED, view.failure)
    return None


def _node_failed(view: View, timings: Timings, now: float) -> Step | None:
    if view.node.state != "failed":
        return None
    message = view.node.error or "the agent reports that the service cannot run"
    return failed(view, timings, now, failures.SERVICE_FAILED, message, instance_is_bad=True)


def _booting(view: View, timings: Timings, now: float) -> Step:
    if step := _up(view, timings, now):
        return step
    if view.node.hello or view.node.state:
        cause = "probing" if view.agentless else "hello"
        return Move(Phase.LOADING, cause, failure=view.failure)
    if view.agentless and now - view.since > timings.boot:
        message = "the instance is running, but the cloud names no address of it"
        return failed(view, timings, now, failures.LOAD_TIMEOUT, message, instance_is_bad=True)
    if now - view.since > timings.boot:
        message = (
            f"the instance is running, but its agent has not called within {timings.boot:.0f} s"
        )
        return failed(view, timings, now, failures.AGENT_SILENT, message, instance_is_bad=True)
    return Wait(_until(view.since + timings.boot, now, timings), "waiting for the agent")


def _loading(view: View, timings: Timings, now: float) -> Step:
    if step := _up(view, timings, now) or _node_failed(view, timings, now):
        return step
    if view.node.state == "ready" and (view.addressed or not view.observed.gone):
        return Move(Phase.READY, "ready", failure=view.failure)
    if now - view.since > timings.load:
        message = f"the service is not ready after {timings.load:.0f} s"
        if view.node.error:
            message += f" ({view.node.error.splitlines()[0]})"
        return failed(view, timings, now, failures.LOAD_TIMEOUT, message, instance_is_bad=True)
    if (view.node.heartbeat_age or 0.0) > timings.node_lost:
        return _agent_lost(view, timings, now)
    return Wait(_until(view.since + timings.load, now, timings), "waiting for the service")


def _deserted(view: View, timings: Timings) -> bool:
    """Whether nothing vouches any more for the running work, if there is any.

    Any byte of the node does, and a `busy:` lease. A frozen node sends none, and closes nothing.
    """
    bound = timings.node_lost * (timings.patience if view.agentless else 1.0)
    return not view.working or view.unanswered > bound


def _ready(view: View, timings: Timings, now: float) -> Step:
    if step := _up(view, timings, now):
        return step
    if _deserted(view, timings):
        if step := _node_failed(view, timings, now):
            return step
        if (view.node.heartbeat_age or 0.0) > timings.node_lost:
            return _agent_lost(view, timings, now)
    if view.node.state == "loading" or (view.node.hello and not view.node.state):
        return Move(Phase.LOADING, "service_restarted", failure=view.failure)
    return Wait(timings.heartbeat, "in use")


def _agent_lost(view: View, timings: Timings, now: float) -> Step:
    if view.agentless:
        message = f"the service has not answered for {timings.node_lost:.0f} s"
        if view.node.error:
            message += f" ({view.node.error})"
        return failed(view, timings, now, failures.SERVICE_LOST, message, instance_is_bad=True)
    message = f"the agent has not been heard of for {timings.node_lost:.0f} s"
    return failed(view, timings, now, failures.AGENT_LOST, message, instance_is_bad=True)


def _vouched_at(view: View, timings: Timings) -> float:
    """Return when everybody who could vouch for running work has had the time for it.

    The store may have lost their leases: emptied, restarted without its last second, replaced by a
    stale replica. Proxies renew theirs within each drain; an agent reports, or says hello first.
    """
    drained = max(view.since, view.known_since) + timings.drain
    doubted = max(view.known_since, view.found_at or 0.0)
    reported = view.node.state and view.heard_at is not None and view.heard_at > doubted
    if view.agentless or view.unheard or reported:
        return drained
    return max(drained, doubted + timings.vouch)


def _draining(view: View, timings: Timings, now: float) -> Step:
    if lost := _lost(view, timings, now):
        return lost
    if view.force_stop:
        return Move(Phase.STOPPING, "down_now")
    interrupted = view.node.interrupted
    if view.wanted and not interrupted:
        back = Phase.READY if view.node.state == "ready" else Phase.BOOTING
        return Move(back, "demand", Guard.WANTED, view.failure)
    left = _vouched_at(view, timings) - now
    if left > 0:
        return Wait(left, "draining")
    if view.working:
        silent = (view.node.heartbeat_age or 0.0) > timings.node_lost
        if silent and not interrupted and _deserted(view, timings):
            return _agent_lost(view, timings, now)
        return Wait(1.0, "draining: work is still running")
    if interrupted:
        failure = _taken_back(view, timings, now)
        return Move(Phase.STOPPING, failures.SPOT_INTERRUPTION, Guard.NO_WORK, failure)
    return Move(Phase.STOPPING, "idle", Guard.IDLE)


def _stopping(view: View, timings: Timings, now: float) -> Step:
    # Only a report from after the stop speaks against its end; where it is not sure that the cloud
    # accepted the call, such a report has the time to arrive.
    ended_at = max(view.gone_since or 0.0, view.called_at or 0.0)
    speaks = view.observed.gone and _refuted(view, timings, now)
    refuted = speaks and (view.heard_at or 0.0) > ended_at
    sure = view.called_at is not None and not view.call_error
    if speaks and not refuted and not sure and now - ended_at < timings.complaint:
        return Wait(1.0, "it is not sure that the instance is stopped")
    if view.observed.gone and not refuted:
        to = _ended(view.failure)
        forgotten = to is Phase.OFF and not view.wanted
        return Move(to, "stopped", failure=None if forgotten else view.failure)
    # An instance that hangs in its start is stopped too; a cloud may refuse that (Conflict).
    on = refuted or view.observed in (Observed.RUNNING, Observed.STARTING)
    if on and (view.called_at is None or now - view.called_at >= timings.call_grace):
        begun = max(view.since, view.called_at or 0.0)
        taken_over = view.known_since > begun and not view.force_stop
        looked_since = view.known_since if taken_over else view.called_at or view.since
        if view.observed_at is not None and view.observed_at < looked_since:
            return Observe()
        return _stop_again(view) if taken_over else Call("stop")
    return Wait(min(1.0, timings.observe_moving), f"the instance is {view.observed.value}")


def _stop_again(view: View) -> Move:
    """Begin a stop anew that another leader, or an earlier store, has begun.

    The store may be a stale replica that shows an earlier stop: the instance may have been started
    since then, and be at work.
    """
    bad = view.failure is not None and view.failure.instance_is_bad
    return Move(Phase.FAILED if bad else Phase.DRAINING, "stop_unfinished", failure=view.failure)


def _failed(view: View, timings: Timings, now: float) -> Step:
    failure = view.failure
    hidden = view.observed.gone and _refuted(view, timings, now)
    if hidden or view.observed in (Observed.RUNNING, Observed.STARTING):
        if failure is None or not failure.instance_is_bad:
            if view.observed is Observed.RUNNING:
                return Move(Phase.BOOTING, "started_after_all", failure=failure)
            why = "its agent reports" if hidden else "the instance is starting after all"
            return Wait(timings.observe_moving, why)
        left = _vouched_at(view, timings) - now
        if view.force_stop:
            return Move(Phase.STOPPING, "down_now", failure=failure)
        if left > 0 or view.working:
            return Wait(max(left, 1.0), "failed: waiting until nobody can be using it")
        return Move(Phase.STOPPING, failure.code, Guard.NO_WORK, failure)
    if view.observed is Observed.STOPPING:
        return Wait(timings.observe_moving, "the instance is stopping")
    if not view.wanted:
        return Move(Phase.OFF, "demand_gone", Guard.UNWANTED)
    # Bounded, because it is of another clock if the store's stepped back during the failed call.
    retry_at = min(failure.retry_at, view.since + timings.retry_max) if failure else 0.0
    if now < retry_at:
        return Wait(retry_at - now, "waiting to try again")
    if view.observed_at is not None and view.observed_at < retry_at:
        return Observe()
    return Move(Phase.STARTING, "retry", Guard.WANTED, failure)


def _absent(view: View) -> str:
    return view.observed_reason or "the cloud knows no such instance"


def _until(deadline: float, now: float, timings: Timings) -> float:
    return max(0.05, min(deadline - now, timings.observe_moving))


_BY_PHASE = {
    Phase.OFF: _off,
    Phase.STARTING: _starting,
    Phase.BOOTING: _booting,
    Phase.LOADING: _loading,
    Phase.READY: _ready,
    Phase.DRAINING: _draining,
    Phase.STOPPING: _stopping,
    Phase.FAILED: _failed,
}
