"""Explain why a GPU is on or off, and what happens next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from qwenctl.core import failures
from qwenctl.core.phase import Phase
from qwenctl.core.refusals import refusal
from qwenctl.core.stops import StopProblem, self_stop, stop_problem
from qwenctl.core.versions import trouble as version_trouble
from qwenctl.core.wakes import Outcome, wakes
from qwenctl.core.words import (
    NOT_ASKED,
    ONE_CONFIGURATION,
    as_of_time,
    cause_of,
    cause_words,
    command_words,
    is_leaving,
    lease_words,
    name_words,
    other_port,
    overdue_boot,
    overdue_words,
    present_failure,
    problem_of,
    stopped_by,
)
from qwenctl.lib.text import countdown, duration, one_line, time_left

if TYPE_CHECKING:
    from qwenctl.core.events import Event
    from qwenctl.core.snapshot import Lease, Snapshot


@dataclass(frozen=True)
class Reason:
    """One sentence of an explanation; ``str()`` returns it."""

    topic: str
    """``state``, ``on``, ``off``, ``failure``, ``started``, ``stopped``, ``schedule``, ``cloud`` or
    ``next``."""
    text: str
    since: float | None = None
    until: float | None = None
    """Unix seconds on the store's clock; None: unknown, or without end."""
    actor: str = ""

    def __str__(self) -> str:
        return self.text


UNANSWERED = 30.0
"""Seconds without a byte of the node from which it is told."""


def explain(
    snapshot: Snapshot,
    events: Sequence[Event],
    now: float | None = None,
    *,
    drain: float = 4.0,
    dead_man: float = 600.0,
    port: int = 0,
) -> list[Reason]:
    """Return who keeps the GPU on or off, since and until when, why, and what is next.

    ``port`` is where its visitors are sent; 0: unknown.
    """
    now = snapshot.now if now is None else now
    reasons = [_state(snapshot, events, now)]
    reasons += [_holds(lease, now, "on") for lease in _by_weight(snapshot.leases)]
    reasons += [_holds(block, now, "off") for block in _by_weight(snapshot.blocks)]
    if not snapshot.leases and not snapshot.blocks:
        reasons.append(Reason("off", "nobody needs it, and nobody has blocked it"))
    if trouble := snapshot.state.get("schedule_trouble"):
        reasons.append(Reason("schedule", f"a schedule is not known: {trouble}"))
    if failure := present_failure(snapshot):
        tries = f"attempt {failure.attempts} failed" if failure.attempts > 1 else "it failed"
        text = f"{tries}, {cause_words(failure.code)}: {one_line(failure.message)}"
        reasons.append(Reason("failure", text))
    problem = stop_problem(snapshot)
    reasons += _of_cloud(snapshot, problem, now)
    if snapshot.phase.running and snapshot.report:
        told = [service for service in snapshot.report.services if service.doubt]
        texts = [f"{one_line(service.name)}: {one_line(service.doubt)}" for service in told]
        reasons += [Reason("node", text) for text in texts]
    if port and (text := other_port(snapshot, port)):
        reasons.append(Reason("node", f"{text}: {ONE_CONFIGURATION}"))
    if late := overdue_boot(snapshot):
        reasons.append(Reason("node", overdue_words(*late), since=snapshot.since))
    if found := version_trouble(snapshot):
        reasons.append(Reason("node", f"{found}; to upgrade, {found.upgrade}"))
    if refused := refusal(snapshot):
        reasons.append(Reason("node", f"{refused}. {refused.advice}"))
    says_ready = snapshot.phase is Phase.LOADING and snapshot.node_view.state == "ready"
    if says_ready and not snapshot.address:
        text = "its agent says that it is ready, but the cloud has not named its address yet"
        reasons.append(Reason("cloud", f"{text}; gpu.{snapshot.gpu}.address names it"))
    if note := snapshot.state.get("start_note"):
        reasons.append(Reason("cloud", one_line(note)))
    reasons += _last_start(events, now)
    over = problem is None or snapshot.phase is not Phase.STOPPING
    reasons += _last_stop(events, now, over=over)
    if problem:
        text = "it stays on, and costs, until the cloud stops it"
        own = self_stop(snapshot, dead_man)
        reasons.append(Reason("next", f"{text}, or {own}" if own else text))
    else:
        reasons.append(_next(snapshot, now, drain))
    return reasons


def _of_cloud(snapshot: Snapshot, problem: StopProblem | None, now: float) -> list[Reason]:
    """Return what the cloud says, or why it says nothing."""
    reasons: list[Reason] = []
    if problem:
        lasted = "" if problem.since is None else f", for {duration(now - problem.since)}"
        reasons.append(Reason("cloud", f"{problem}{lasted}", since=problem.since))
    elif error := snapshot.state.get("observe_error"):
        reasons.append(
            Reason(
                "cloud",
                one_line(error)
                if snapshot.state.get("observe_code") == failures.CLAIMED
                else f"the cloud cannot be asked: {one_line(error)}; nothing is started or stopped blind",
            )
        )
    elif cloud := snapshot.state.get("observed_reason"):
        reasons.append(Reason("cloud", f"the cloud says: {one_line(cloud)}"))
    if snapshot.phase.running and (seen := snapshot.observed).gone:
        text = f"the cloud says that the instance is {seen.value}, which its agent or its work"
        reasons.append(Reason("cloud", f"{text} contradicts; it is looked at again"))
    if (ends := snapshot.interruption_ends) is not None:
        action = one_line(snapshot.node.get("interruption", ""))
        when = countdown(ends - now) if ends > now else f"since {duration(now - ends)} ago"
        text = f"the cloud takes this instance back {when} (spot interruption: {action})"
        reasons.append(Reason("cloud", text, since=snapshot.interrupted_at, until=ends))
    return reasons


def _by_weight(leases: Sequence[Lease]) -> list[Lease]:
    return sorted(leases, key=lambda lease: (lease.is_work, lease.expiry), reverse=True)


def _state(snapshot: Snapshot, events: Sequence[Event], now: float) -> Reason:
    phase = snapshot.phase
    cause = cause_of(snapshot, events)
    if phase is Phase.OFF and "observed" not in snapshot.state:
        return Reason("state", NOT_ASKED)
    if not snapshot.since:
        return Reason("state", "off; it has never been used")
    ago = duration(now - snapshot.since)
    text = f"failed {ago} ago" if phase is Phase.FAILED else f"{phase.value} for {ago}"
    text += f": {cause}" if cause else ""
    if (as_of := as_of_time(snapshot)) is not None:
        text += f" (as of {duration(now - as_of)} ago, not verified: no proxy runs)"
    return Reason("state", text, since=snapshot.since, actor=snapshot.state.get("actor", ""))


def _holds(lease: Lease, now: float, side: str) -> Reason:
    text = f"kept {side} by {lease_words(lease)}"
    if lease.since is not None:
        text += f", since {duration(now - lease.since)} ago"
    if lease.expiry == inf:
        text += ", until somebody unblocks it"
    elif lease.is_work:
        text += ", until it is finished"
        if lease.answered_at is not None and now - lease.answered_at >= UNANSWERED:
            text += f"; the node has answered nothing for {duration(now - lease.answered_at)}"
    else:
        text += f", for another {time_left(lease.expiry - now)}"
    until = None if lease.expiry == inf or lease.is_work else lease.expiry
    return Reason(side, text, lease.since, until, lease.actor)


def _last_start(events: Sequence[Event], now: float) -> list[Reason]:
    for wake in reversed(wakes(events)):
        if wake.cause == "service_restarted":
            continue
        why = cause_words(wake.cause)
        if wake.lease:
            why = f"needed by {name_words(wake.lease, wake.actor, wake.cause)}"
        text = f"last started {duration(now - wake.started_at)} ago: {why}"
        if wake.seconds is not None:
            text += f"; ready after {duration(wake.seconds)}"
        elif wake.outcome is not Outcome.UNDER_WAY:
            text += f"; {wake.outcome.value} ({cause_words(wake.code)})"
        return [Reason("started", text, since=wake.started_at, actor=wake.actor)]
    return []


def _last_stop(events: Sequence[Event], now: float, *, over: bool) -> list[Reason]:
    """Return the last stop, with the person who caused it, if any."""
    stopped, behind = stopped_by(events, (Phase.STOPPING,))
    if stopped is None:
        return []
    why = command_words(behind) if behind else cause_words(stopped.cause)
    ago = duration(now - stopped.time)
    text = f"last stopped {ago} ago: {why}"
    if not over:
        text = f"its stop was decided {ago} ago and is not over: {why}"
    actor = behind.actor if behind else ""
    return [Reason("stopped", text, since=stopped.time, actor=actor)]


def _next(snapshot: Snapshot, now: float, drain: float) -> Reason:
    """Return what happens next if nobody does anything."""
    phase, wanted, failure = snapshot.phase, snapshot.wanted, snapshot.failure
    at: float | None = None
    if phase is Phase.FAILED and failure is not None and wanted:
        at = failure.retry_at
        text = f"it is tried again {countdown(at - now)}"
    elif phase is Phase.FAILED:
        text = "it goes off; the next demand tries again"
    elif phase is Phase.STOPPING:
        text = "it goes off" + (", and starts again at once" if wanted else "")
    elif phase is Phase.DRAINING:
        at = snapshot.since + drain
        text = f"it is stopped {countdown(at - now)} unless somebody needs it"
        if is_leaving(snapshot):
            text = f"it is stopped {countdown(at - now)}"
        if snapshot.working:
            at, text = None, "it is stopped as soon as the running work is finished"
        if is_leaving(snapshot) and wanted:
            text += ", and started again"
    elif phase is Phase.OFF:
        text = "it starts" if wanted else "it stays off" + _until_unblocked(snapshot, now)
        if not wanted and not snapshot.blocks:
            text += " until somebody needs it"
        if "observed" not in snapshot.state:
            text = f"the cloud is asked first; if it is off, {text}"
    elif not wanted:
        text = "it drains and is stopped"
    elif phase.waking:
        text = "it becomes ready, then stays on as long as somebody needs it"
        if overdue_boot(snapshot):
            text = (
                "it becomes ready if its agent is heard; after timing.boot the attempt has failed"
            )
        if problem := problem_of(snapshot):
            text = f"it becomes ready once this is over: {problem}"
    elif snapshot.working:
        text = "it stays on while work is running"
    else:
        at = max(lease.expiry for lease in snapshot.leases) + drain
        text = f"it is stopped {countdown(at - now)} unless somebody uses it before"
    unknown = "observed" not in snapshot.state
    if not snapshot.leader and (wanted or unknown or not phase.settled or phase is Phase.READY):
        text += ", once a controller runs: start `qwenctl serve`"
    return Reason("next", text, until=at)


def _until_unblocked(snapshot: Snapshot, now: float) -> str:
    if not snapshot.blocks:
        return ""
    end = max(block.expiry for block in snapshot.blocks)
    if end == inf:
        return " until it is unblocked"
    outlive = [lease for lease in snapshot.leases if not lease.is_work and lease.expiry > end]
    again = f"; then it starts again for {lease_words(_by_weight(outlive)[0])}" if outlive else ""
    return f" for {time_left(end - now)}, while blocked{again}"
