"""Causes, leases and problems in plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from qwenctl.core import failures, leases
from qwenctl.core.events import Event, EventKind
from qwenctl.core.failures import Failure
from qwenctl.core.phase import Phase
from qwenctl.core.stops import FRESH
from qwenctl.lib.text import duration, escape_control, one_line

if TYPE_CHECKING:
    from qwenctl.core.snapshot import Lease, Snapshot

_PROCESS = re.compile(r".+:[0-9]+:[0-9a-f]{6}")
"""The name of a proxy's process (`qwenctl.control.controller.owner_name`), which is no visitor."""

NOT_ASKED = "not known: the cloud has not been asked yet"
"""State of a GPU that nobody has looked at: its phase is ``off``, but it may run."""


OffBill = Literal["disks", "all", "here", "other"]
"""What is billed while an instance is off: a key of `OFF_BILLS`, and of the page's texts."""

OFF_BILLS: dict[OffBill, str] = {
    "disks": "GPU, vCPU and memory are not billed; disks and fixed addresses (Elastic IP, EIP) are",
    "all": "billed as if it were on (keep_charging = true)",
    "here": "nothing: its processes on this machine have ended",
    "other": "whatever its provider bills for an instance that is off, such as disks",
}


ONE_CONFIGURATION = "restart `qwenctl serve` with one configuration, or give the second file a deployment of its own"
"""What ends `other_port`."""


def is_leaving(snapshot: Snapshot) -> bool:
    """Return whether the cloud takes the instance back, and it is being stopped."""
    on = snapshot.phase in (Phase.DRAINING, Phase.STOPPING)
    return on and snapshot.interrupted_at is not None


def problem_of(snapshot: Snapshot) -> str:
    """Return why a service has not started so far, as its agent reports."""
    # Without an agent every boot begins with a service that does not answer.
    told = snapshot.phase is Phase.LOADING and snapshot.node.get("version")
    return escape_control((snapshot.node_view.error.splitlines() or [""])[0])[:300] if told else ""


def other_port(snapshot: Snapshot, port: int) -> str:
    """Return that the node's services have other ports than the settings say, or an empty text.

    So it is where two configurations share a deployment: the node runs the services of one.
    """
    report, age = snapshot.report, snapshot.node_view.heartbeat_age
    if not snapshot.phase.running or report is None or age is None or age > FRESH:
        return ""
    if not report.services or port in (service.port for service in report.services):
        return ""
    runs = ", ".join(f"{one_line(one.name)} on port {one.port}" for one in report.services)
    return f"the node runs {runs}, but these settings say port {port}"


def overdue_boot(snapshot: Snapshot) -> tuple[float, str] | None:
    """Return for how long nothing was heard from a boot's agent, and the URLs it is told to reach.

    None: it is not overdue. The controller records that (`overdue.lua`).
    """
    at = snapshot.time("overdue_at")
    if snapshot.phase is not Phase.BOOTING or at is None or at < snapshot.since:
        return None
    return snapshot.now - snapshot.since, one_line(snapshot.state.get("told_urls", ""))


def overdue_words(seconds: float, urls: str) -> str:
    """Return that nothing is heard from a boot's agent."""
    return (
        f"nothing heard from its agent for {duration(seconds)}; it is told to reach "
        f"{' or '.join(urls.split())}"
    )


def present_failure(snapshot: Snapshot) -> Failure | None:
    """Return the failure to show. While ready, it is kept only to count the attempts."""
    return None if snapshot.phase in (Phase.READY, Phase.DRAINING) else snapshot.failure


def as_of_time(snapshot: Snapshot) -> float | None:
    """Return the time of the last look; None while a controller looks after the GPU."""
    if snapshot.leader or "observed" not in snapshot.state:
        return None
    heard = snapshot.time("observed_at") or 0.0
    if snapshot.phase.running and (age := snapshot.node_view.heartbeat_age) is not None:
        heard = max(heard, snapshot.now - age)
    return max(heard, snapshot.since)


def cause_of(snapshot: Snapshot, events: Sequence[Event]) -> str:
    """Return the phase's cause in plain words, or whose `down` or `block` led to it."""
    if snapshot.phase in (Phase.DRAINING, Phase.STOPPING):
        _, behind = stopped_by(events)
        if behind is not None:
            return command_words(behind)
    return cause_words(snapshot.state.get("cause", ""))


def lease_words(lease: Lease) -> str:
    """Return a lease or block in plain words: who, and what for."""
    return name_words(lease.name, lease.actor, lease.reason)


def name_words(name: str, actor: str = "", reason: str = "") -> str:
    """Return the name of a lease or block (``pin:anna``) in plain words."""
    name, actor = escape_control(name), escape_control(actor)
    kind, rest = leases.parse(name)
    who = actor or rest
    if kind == leases.REQUEST:
        if not actor or _PROCESS.fullmatch(actor):  # so did earlier proxies
            who = leases.visitor(rest)
        return _because(f"a visitor ({who})", "" if reason == leases.REQUEST else reason)
    if kind == leases.INFLIGHT:
        return f"requests in flight through {rest}"
    if kind == leases.BUSY:
        return "running work that the node reports"
    if kind == leases.ADOPTED:
        return "the rule that an instance found running is kept for one idle timeout"
    named = {
        leases.PIN: f"{who} (qwenctl up)",
        leases.PREWARM: f"the schedule {rest}",
        leases.MAINTENANCE: f"{who} (qwenctl block)",
        leases.OFF_HOURS: f"the off-hours {rest}",
        leases.FORMER: "a change of the settings",
        leases.BUDGET: "the budget",
    }
    return _because(named.get(kind, name), reason)


def _because(who: str, reason: str) -> str:
    return f"{who}: {one_line(reason)}" if reason else who


CAUSES = {
    "demand": "somebody needs it",
    "found_running": "the instance was found running",
    "running": "the cloud says that the instance runs",
    "hello": "its agent has reported",
    "probing": "it has no agent, its service is asked",
    "ready": "its service answers",
    "idle": "nobody needed it any more",
    "blocked": "it was blocked",
    "down_now": "somebody said --now",
    "stopped": "the instance is stopped",
    "stopped_outside": "the instance stopped by itself or was stopped by somebody else",
    "retry": "another attempt after a failure",
    "started_after_all": "the instance started after all",
    "stop_unfinished": "another process had begun to stop it, and it still runs",
    "demand_gone": "nobody needed it any more",
    "service_restarted": "its service restarts",
    "unblock": "it was unblocked",
    **failures.MEANINGS,
}


def cause_words(cause: str) -> str:
    """Return the cause of a transition, or the code of a failure, in plain words."""
    return CAUSES.get(cause, cause.replace("_", " "))


def event_cause(event: Event) -> str:
    """Return the cause of a transition, with the message of a failure."""
    words = cause_words(event.cause)
    if event.to is Phase.FAILED and event.failure:
        words += f": {one_line(event.failure.message)}"
    return words


def stopped_by(
    events: Sequence[Event], phases: Sequence[Phase] = (Phase.DRAINING, Phase.STOPPING)
) -> tuple[Event | None, Event | None]:
    """Return the last stop (also from outside), and the `down` or `block` before it."""
    stopped: Event | None = None
    for event in reversed(events):
        if stopped is None:
            causes = ("stopped_outside", failures.SPOT_INTERRUPTION)
            outside = event.to is Phase.OFF and event.cause in causes
            if event.to in phases or outside:
                stopped = event
                if outside:
                    break
        elif event.kind in (EventKind.DOWN, EventKind.BLOCK):
            return stopped, event
        elif event.kind is EventKind.LEASE:
            break  # it was needed again after an earlier `down`
        elif event.to in (Phase.READY, Phase.STARTING, Phase.FAILED):
            break
    return stopped, None


def command_words(event: Event) -> str:
    """Return a `down` or `block` in plain words."""
    if event.kind is EventKind.BLOCK and leases.kind_of(event.name) != leases.MAINTENANCE:
        return name_words(event.name, reason=event.cause)
    command = f"qwenctl {event.kind}" + (" --now" if event.force_stop else "")
    return _because(f"{event.actor or 'somebody'} ({command})", event.cause)
