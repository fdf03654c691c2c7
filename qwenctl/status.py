"""What is known of a GPU, put so that a page, a script or a person can use it.

`page_status` is for the waiting page and its API, `full_status` for ``qwenctl status``, `explain`
for ``qwenctl why``. All three only read the snapshot and the events given; nothing in their results
is secret.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

from qwenctl.lifecycle import Failure, Phase
from qwenctl.plain_text import plain
from qwenctl.trace import STEPS, Mark, Outcome, Wake, expected, wakes

if TYPE_CHECKING:
    from qwenctl.config import GpuConfig
    from qwenctl.store import Event, Lease, Snapshot

__all__ = [
    "HISTORY",
    "NODE_PHASES",
    "NOT_ASKED",
    "Reason",
    "cause_words",
    "duration",
    "event_cause",
    "explain",
    "full_status",
    "lease_words",
    "name_words",
    "node_url",
    "one_line",
    "own_record",
    "page_status",
]

NOT_ASKED = "not known: the cloud has not been asked yet"
"""The state of a GPU that nobody has looked at: its phase is ``off``, but it may run."""

HISTORY = 1000
"""How many events to hand in: enough for the last 20 wakes that the ETA is learned from."""

NODE_PHASES = frozenset({Phase.BOOTING, Phase.LOADING, Phase.READY, Phase.DRAINING})
"""When what the node last said of itself is still so: afterwards it may be off."""

_ACTIVE = {Phase.BOOTING: "boot", Phase.LOADING: "load"}


def page_status(
    snapshot: Snapshot, events: Sequence[Event], gpu_config: GpuConfig, *, may_wake: bool
) -> dict[str, Any]:
    """The JSON that the waiting page shows.

    ``steps`` are in order ``request``, ``start``, ``boot``, ``load``, ``ready``; each is ``done``,
    ``active``, ``todo`` or ``failed``, with the seconds it took (or has taken so far) and the
    seconds it usually takes. ``elapsed_seconds`` counts from the click; ``eta_seconds`` is what is
    left, 0 when it takes longer than usual, null when the GPU is not on its way up.
    """
    history = wakes(events)
    usual = expected(history, gpu_config.boot_estimate)
    now, phase = snapshot.now, snapshot.phase
    wake = _present(history, snapshot)
    active = _active_step(snapshot, wake)
    keys = (*STEPS, "ready")
    position = keys.index(active) if active else -1

    steps: list[dict[str, Any]] = []
    for index, key in enumerate(keys):
        state = "done" if index < position else "todo"
        if index == position:
            state = "failed" if phase is Phase.FAILED else "active"
        if phase in (Phase.READY, Phase.DRAINING) and not _leaving(snapshot):
            state = "done"
        seconds = wake.durations.get(key) if wake and state != "todo" else None
        if wake and state == "active" and seconds is None:
            began = wake.began(key) if key in STEPS else None
            seconds = None if began is None else now - began
        steps.append(
            {
                "key": key,
                "state": state,
                "seconds": _round(seconds),
                "expected": _round(usual.get(key)),
            }
        )

    eta = None
    if snapshot.wanted and active and phase is not Phase.FAILED:
        spent = steps[position]["seconds"] or 0.0
        eta = max(0.0, usual.get(active, 0.0) - spent)
        eta += sum(usual[key] for key in STEPS[position + 1 :])
    return {
        "gpu": snapshot.gpu,
        "phase": phase.value,
        "wanted": snapshot.wanted,
        "steps": steps,
        "elapsed_seconds": _round(_elapsed(wake, snapshot)),
        "eta_seconds": _round(eta),
        "progress": _progress(snapshot),
        "problem": _problem(snapshot),
        "interruption": _interruption(snapshot),
        "failure": _failure(snapshot),
        "note": snapshot.state.get("start_note", ""),
        "blocked": _blocked(snapshot),
        "wake_on": gpu_config.wake_on,
        "may_wake": may_wake,
    }


def _present(history: Sequence[Wake], snapshot: Snapshot) -> Wake | None:
    """The wake that the snapshot is in the middle, or at the end, of."""
    last = history[-1] if history and not _leaving(snapshot) else None
    fitting = {
        Outcome.UNDER_WAY: snapshot.phase.waking or snapshot.phase is Phase.DRAINING,
        Outcome.READY: snapshot.phase in (Phase.READY, Phase.DRAINING),
        Outcome.FAILED: snapshot.phase is Phase.FAILED,
        Outcome.ABANDONED: False,
    }
    return last if last and fitting[last.outcome] else None


def _leaving(snapshot: Snapshot) -> bool:
    """Whether the cloud takes the instance back, and it is no longer for new requests."""
    on = snapshot.phase in (Phase.DRAINING, Phase.STOPPING)
    return on and snapshot.interrupted_at is not None


def _interruption(snapshot: Snapshot) -> dict[str, Any] | None:
    ends = snapshot.interruption_ends
    if ends is None:
        return None
    return {
        "action": snapshot.node.get("interruption", ""),
        "seconds_left": _round(max(0.0, ends - snapshot.now)),
    }


def _active_step(snapshot: Snapshot, wake: Wake | None) -> str:
    """The step under way or the one that failed; empty if nothing is on its way up."""
    phase = snapshot.phase
    if phase is Phase.FAILED:
        reached = wake.marks if wake else {}
        for step, mark in (("load", Mark.HELLO), ("boot", Mark.RUNNING)):
            if mark in reached:
                return step
        return "start"
    if phase is Phase.STARTING:
        called = snapshot.time("called_at") is not None or (wake and Mark.CALL in wake.marks)
        return "start" if called else "request"
    if phase in (Phase.OFF, Phase.STOPPING) or _leaving(snapshot):
        return "request" if snapshot.wanted else ""
    return _ACTIVE.get(phase, "ready")


def _elapsed(wake: Wake | None, snapshot: Snapshot) -> float | None:
    if wake is not None:
        end = wake.marks.get(Mark.READY, wake.ended_at)
        return (snapshot.now if end is None else end) - wake.started_at
    if snapshot.wanted and not snapshot.phase.serves:
        # Who used it until the cloud took it back waits from then on.
        from_ = snapshot.interrupted_at or 0.0
        asked = [max(lease.since, from_) for lease in snapshot.leases if lease.since is not None]
        return snapshot.now - min(asked) if asked else None
    return None


def _progress(snapshot: Snapshot) -> dict[str, Any] | None:
    if snapshot.phase is not Phase.LOADING or snapshot.report is None:
        return None
    progress = snapshot.report.progress
    words = {"phase": plain(progress.phase), "text": plain(progress.text)}
    told = progress.phase or progress.text or _problem(snapshot)
    return {**progress.model_dump(), **words} if told else None


def _problem(snapshot: Snapshot) -> str:
    """Why a service has not started so far, by what its agent says; empty if nothing is wrong."""
    # Without an agent, that nothing answers yet is what every boot begins with.
    told = snapshot.phase is Phase.LOADING and snapshot.node.get("version")
    return plain((snapshot.node_view.error.splitlines() or [""])[0])[:300] if told else ""


def _present_failure(snapshot: Snapshot) -> Failure | None:
    """While it is ready, what failed before is kept only to count the attempts."""
    return None if snapshot.phase in (Phase.READY, Phase.DRAINING) else snapshot.failure


def _failure(snapshot: Snapshot) -> dict[str, Any] | None:
    failure = _present_failure(snapshot)
    if failure is None:
        return None
    again = snapshot.phase is Phase.FAILED and snapshot.wanted
    return {
        "code": failure.code,
        "message": plain(failure.headline),
        "attempts": failure.attempts,
        "retry_in_seconds": _round(max(0.0, failure.retry_at - snapshot.now)) if again else None,
    }


def _blocked(snapshot: Snapshot) -> dict[str, Any] | None:
    if not snapshot.blocks:
        return None
    block = max(snapshot.blocks, key=lambda block: block.expiry)
    return {
        "kind": block.kind,
        "by": block.actor,
        "reason": block.reason,
        "seconds_left": _left(block, snapshot.now),
    }


def _left(lease: Lease, now: float) -> float | None:
    return None if lease.expiry == inf else _round(max(0.0, lease.expiry - now))


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


# For the command line


def own_record(
    snapshot: Snapshot, events: Sequence[Event], gpu_config: GpuConfig
) -> tuple[Snapshot, Sequence[Event], str]:
    """What is recorded of the configured instance, and, if it is another one that was looked at last,
    which. A GPU of the same name may have been another instance, by an earlier configuration or by
    that of another directory.
    """
    recorded = snapshot.state.get("machine", "")
    if recorded and recorded != gpu_config.machine:
        return replace(snapshot, state={}, node={}), [], recorded
    if (since := snapshot.time("machine_since")) is None:
        return snapshot, events, ""
    ends = (Phase.READY.value, Phase.OFF.value, Phase.FAILED.value)
    others = [
        index
        for index, event in enumerate(events)
        if event.kind == "transition" and event.fields.get("to") in ends and event.time < since
    ]
    return snapshot, events[others[-1] + 1 :] if others else events, ""


def _as_of(snapshot: Snapshot) -> float | None:
    """When somebody looked last, if nobody does now; else None."""
    if snapshot.leader or "observed" not in snapshot.state:
        return None
    heard = snapshot.time("observed_at") or 0.0
    if snapshot.phase in NODE_PHASES and (age := snapshot.node_view.heartbeat_age) is not None:
        heard = max(heard, snapshot.now - age)
    return max(heard, snapshot.since)


def full_status(
    snapshot: Snapshot,
    events: Sequence[Event],
    gpu_config: GpuConfig,
    *,
    url: str = "",
) -> dict[str, Any]:
    """All there is to say about a GPU, as JSON types. Times are Unix seconds on the store's clock.

    ``cause`` is a code, ``cause_text`` the same in words, which also name the person behind it.

    ``idle_seconds_left`` is how long it stays on if nobody uses it any more; null while it is off,
    blocked, or working. ``cost_so_far`` is the price of the time since the instance booted; null
    without a price, as long as no agent tells that time, and from its stop on.

    ``verified`` is whether a controller looks after it now. If none does, ``as_of`` is when somebody
    looked last, and all else may have changed since. ``cloud.other`` names the instance that is on
    record instead of the configured one (see `own_record`).
    """
    now = snapshot.now
    snapshot, events, other = own_record(snapshot, events, gpu_config)
    page = page_status(snapshot, events, gpu_config, may_wake=not snapshot.blocks)
    page.pop("may_wake")
    history = wakes(events)
    return {
        **page,
        "now": now,
        "since": snapshot.since or None,
        "verified": bool(snapshot.leader),
        "as_of": _as_of(snapshot),
        "cause": snapshot.state.get("cause", ""),
        "cause_text": _cause(snapshot, events),
        "actor": snapshot.state.get("actor", ""),
        "working": snapshot.working,
        "idle_seconds_left": _idle_left(snapshot),
        "url": url,
        "node_url": node_url(snapshot, gpu_config),
        "address": gpu_config.address or snapshot.address,
        "provider": gpu_config.provider,
        "agent": gpu_config.agent,
        "price_per_hour": gpu_config.price_per_hour,
        "cost_so_far": _cost(snapshot, gpu_config),
        "leases": [_entry(lease, now) for lease in snapshot.leases],
        "blocks": [_entry(block, now) for block in snapshot.blocks],
        "leader": snapshot.leader or None,
        "cloud": {**_cloud(snapshot), "other": other},
        "node": _node(snapshot),
        "last_wake": _wake(history[-1]) if history else None,
    }


def _cost(snapshot: Snapshot, gpu_config: GpuConfig) -> float | None:
    report, age = snapshot.report, snapshot.node_view.heartbeat_age
    told = gpu_config.agent and snapshot.phase in NODE_PHASES
    if not gpu_config.price_per_hour or not told or report is None or age is None:
        return None
    return round((report.uptime + age) / 3600 * gpu_config.price_per_hour, 4)


def node_url(snapshot: Snapshot, gpu_config: GpuConfig) -> str:
    """Where the service itself answers, without a proxy; empty as long as nobody knows."""
    host = gpu_config.address or snapshot.address
    if not host:
        return ""
    return f"http://{f'[{host}]' if ':' in host else host}:{gpu_config.port}"


def _idle_left(snapshot: Snapshot) -> float | None:
    if not snapshot.phase.serves or snapshot.working or not snapshot.wanted:
        return None
    return _round(max(lease.expiry for lease in snapshot.leases) - snapshot.now)


def _entry(lease: Lease, now: float) -> dict[str, Any]:
    return {
        "name": lease.name,
        "kind": lease.kind,
        "actor": lease.actor,
        "reason": lease.reason,
        "since": lease.since,
        "seconds_left": _left(lease, now),
        "text": lease_words(lease),
    }


def _cloud(snapshot: Snapshot) -> dict[str, Any]:
    at, called_at = snapshot.time("observed_at"), snapshot.time("called_at")
    call = {Phase.STARTING: "start", Phase.STOPPING: "stop"}.get(snapshot.phase, "")
    return {
        "called": call if called_at is not None and (at or 0.0) < called_at else "",
        "state": snapshot.state.get("observed") or None,
        "instance_id": snapshot.state.get("instance_id", ""),
        "reason": snapshot.state.get("observed_reason", ""),
        "note": snapshot.state.get("start_note", ""),
        "error": snapshot.state.get("observe_error", "") or snapshot.state.get("call_error", ""),
        "age_seconds": None if at is None else _round(max(0.0, snapshot.now - at)),
    }


def _node(snapshot: Snapshot) -> dict[str, Any] | None:
    if not snapshot.node:
        return None
    view, report = snapshot.node_view, snapshot.report
    return {
        "state": view.state or ("hello" if view.hello else ""),
        "error": view.error,
        "version": snapshot.node.get("version", ""),
        "heartbeat_age_seconds": _round(view.heartbeat_age),
        "uptime_seconds": report.uptime if report else None,
        "active": report.active if report else 0,
        "services": [service.model_dump() for service in report.services] if report else [],
        "resources": report.resources.model_dump(mode="json") if report else None,
    }


def _wake(wake: Wake) -> dict[str, Any]:
    return {
        "id": wake.id,
        "started_at": wake.started_at,
        "actor": wake.actor,
        "cause": wake.cause,
        "lease": wake.lease,
        "outcome": wake.outcome.value,
        "code": wake.code,
        "seconds": _round(wake.seconds),
        "durations": {step: _round(seconds) for step, seconds in wake.durations.items()},
        "phases": {name: _round(seconds) for name, seconds in wake.phases.items()},
    }


@dataclass(frozen=True)
class Reason:
    """One thing that `explain` has to say; ``str()`` gives the sentence."""

    topic: str
    """``state``, ``on``, ``off``, ``failure``, ``started``, ``stopped``, ``cloud`` or ``next``."""
    text: str
    since: float | None = None
    until: float | None = None
    """Unix seconds on the store's clock; None: not known, or without end."""
    actor: str = ""

    def __str__(self) -> str:
        return self.text


def explain(
    snapshot: Snapshot, events: Sequence[Event], now: float | None = None, *, drain: float = 4.0
) -> list[Reason]:
    """Who keeps the GPU on or off, since when and until when, why, and what happens next."""
    now = snapshot.now if now is None else now
    reasons = [_state(snapshot, events, now)]
    reasons += [_holds(lease, now, "on") for lease in _by_weight(snapshot.leases)]
    reasons += [_holds(block, now, "off") for block in _by_weight(snapshot.blocks)]
    if not snapshot.leases and not snapshot.blocks:
        reasons.append(Reason("off", "nobody needs it, and nobody has blocked it"))
    if failure := _present_failure(snapshot):
        tries = f"attempt {failure.attempts} failed" if failure.attempts > 1 else "it failed"
        text = f"{tries}, {cause_words(failure.code)}: {one_line(failure.message)}"
        reasons.append(Reason("failure", text))
    if error := snapshot.state.get("observe_error"):
        reasons.append(
            Reason(
                "cloud",
                f"the cloud cannot be asked: {one_line(error)}; nothing is started or stopped blind",
            )
        )
    elif cloud := snapshot.state.get("observed_reason"):
        reasons.append(Reason("cloud", f"the cloud says: {one_line(cloud)}"))
    if (ends := snapshot.interruption_ends) is not None:
        action = one_line(snapshot.node.get("interruption", ""))
        when = f"in {duration(ends - now)}" if ends > now else f"since {duration(now - ends)} ago"
        text = f"the cloud takes this instance back {when} (spot interruption: {action})"
        reasons.append(Reason("cloud", text, since=snapshot.interrupted_at, until=ends))
    if note := snapshot.state.get("start_note"):
        reasons.append(Reason("cloud", one_line(note)))
    reasons += _last_start(events, now)
    reasons += _last_stop(events, now)
    reasons.append(_next(snapshot, now, drain))
    return reasons


def _by_weight(leases: Sequence[Lease]) -> list[Lease]:
    return sorted(leases, key=lambda lease: (lease.is_work, lease.expiry), reverse=True)


def _state(snapshot: Snapshot, events: Sequence[Event], now: float) -> Reason:
    phase = snapshot.phase
    cause = _cause(snapshot, events)
    if phase is Phase.OFF and "observed" not in snapshot.state:
        return Reason("state", NOT_ASKED)
    if not snapshot.since:
        return Reason("state", "off; it has never been used")
    ago = duration(now - snapshot.since)
    text = f"failed {ago} ago" if phase is Phase.FAILED else f"{phase.value} for {ago}"
    text += f": {cause}" if cause else ""
    if (as_of := _as_of(snapshot)) is not None:
        text += f" (as of {duration(now - as_of)} ago, not verified: no proxy runs)"
    return Reason("state", text, since=snapshot.since, actor=snapshot.state.get("actor", ""))


def _cause(snapshot: Snapshot, events: Sequence[Event]) -> str:
    """Why it is in this phase, in plain words; whose `down` or `block`, if that is why."""
    if snapshot.phase in (Phase.DRAINING, Phase.STOPPING):
        _, behind = _stopped_by(events)
        if behind is not None:
            return _command_words(behind)
    return cause_words(snapshot.state.get("cause", ""))


def _holds(lease: Lease, now: float, side: str) -> Reason:
    text = f"kept {side} by {lease_words(lease)}"
    if lease.since is not None:
        text += f", since {duration(now - lease.since)} ago"
    if lease.expiry == inf:
        text += ", until somebody unblocks it"
    elif lease.is_work:
        text += ", until it is finished"
    else:
        text += f", for another {duration(lease.expiry - now)}"
    until = None if lease.expiry == inf or lease.is_work else lease.expiry
    return Reason(side, text, lease.since, until, lease.actor)


def lease_words(lease: Lease) -> str:
    """A lease or block in plain words: who, and what for."""
    return name_words(lease.name, lease.actor, lease.reason)


def name_words(name: str, actor: str = "", reason: str = "") -> str:
    """The name of a lease or block (``pin:anna``) in plain words: who, and what for."""
    kind, _, rest = name.partition(":")
    who = actor or rest
    if kind == "request":
        return _because(f"a visitor ({who})", "" if reason == "request" else reason)
    if kind == "inflight":
        return f"requests in flight through {rest}"
    if kind == "busy":
        return "running work that the node reports"
    if kind == "adopted":
        return "the rule that an instance found running is kept for one idle timeout"
    named = {
        "pin": f"{who} (qwenctl up)",
        "prewarm": f"the schedule {rest}",
        "maintenance": f"{who} (qwenctl block)",
        "off-hours": f"the off-hours {rest}",
        "budget": "the budget",
    }
    return _because(named.get(kind, name), reason)


def _because(who: str, reason: str) -> str:
    return f"{who}: {one_line(reason)}" if reason else who


def one_line(text: str) -> str:
    """The first line of a message, and where to look for what follows it. Without control
    characters, as it may come from a stranger."""
    lines = text.strip().splitlines() or [""]
    return plain(lines[0]) + (" (more in `qwenctl logs`)" if len(lines) > 1 else "")


_CAUSES = {
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
    "spot_interruption": "the cloud takes the instance back (spot interruption)",
    "stopped_outside": "the instance stopped by itself or was stopped by somebody else",
    "retry": "another attempt after a failure",
    "started_after_all": "the instance started after all",
    "demand_gone": "nobody needed it any more",
    "service_restarted": "its service restarts",
    "unblock": "it was unblocked",
    # Codes of failures
    "agent_lost": "its agent is no longer heard of",
    "agent_silent": "its agent has not called",
    "denied": "the cloud does not permit it",
    "instance_lost": "the instance stopped while it was needed",
    "load_timeout": "its service was not ready in time",
    "no_capacity": "the cloud has no such machine free",
    "not_found": "the cloud knows no such instance",
    "provider_error": "the cloud refused",
    "service_failed": "its service cannot run",
    "service_lost": "its service no longer answers",
    "start_failed": "the instance did not start",
    "start_timeout": "the instance did not start in time",
    "throttled": "the cloud takes no more calls for now",
}


def cause_words(cause: str) -> str:
    """The cause of a transition, or the code of a failure, in plain words."""
    return _CAUSES.get(cause, cause.replace("_", " "))


def event_cause(event: Event) -> str:
    """The cause of a transition, with the message of a failure if it is one."""
    words = cause_words(event.fields.get("cause", ""))
    if event.fields.get("to") == "failed" and event.fields.get("failure"):
        try:
            words += f": {one_line(json.loads(event.fields['failure'])['message'])}"
        except (ValueError, KeyError, TypeError):
            pass
    return words


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


def _last_stop(events: Sequence[Event], now: float) -> list[Reason]:
    """The last stop and, if a person was behind it, who."""
    stopped, behind = _stopped_by(events, ("stopping",))
    if stopped is None:
        return []
    why = _command_words(behind) if behind else cause_words(stopped.fields.get("cause", ""))
    text = f"last stopped {duration(now - stopped.time)} ago: {why}"
    actor = behind.fields.get("actor", "") if behind else ""
    return [Reason("stopped", text, since=stopped.time, actor=actor)]


def _stopped_by(
    events: Sequence[Event], phases: Sequence[str] = ("draining", "stopping")
) -> tuple[Event | None, Event | None]:
    """The last transition to one of the phases (or to off, from outside), and the `down` or `block`
    that led to it."""
    stopped: Event | None = None
    for event in reversed(events):
        fields = event.fields
        if stopped is None:
            causes = ("stopped_outside", "spot_interruption")
            outside = fields.get("to") == "off" and fields.get("cause") in causes
            if event.kind == "transition" and (fields.get("to") in phases or outside):
                stopped = event
                if outside:
                    break
        elif event.kind in ("down", "block"):
            return stopped, event
        elif event.kind == "lease":
            break  # it was needed again after an earlier `down`
        elif event.kind == "transition" and fields.get("to") in ("ready", "starting", "failed"):
            break
    return stopped, None


def _command_words(event: Event) -> str:
    """A `down` or `block` in plain words."""
    fields = event.fields
    if event.kind == "block" and not fields.get("name", "").startswith("maintenance:"):
        return name_words(fields.get("name", ""), reason=fields.get("cause", ""))
    command = f"qwenctl {event.kind}" + (" --now" if fields.get("cut") == "1" else "")
    return _because(f"{fields.get('actor') or 'somebody'} ({command})", fields.get("cause", ""))


def _next(snapshot: Snapshot, now: float, drain: float) -> Reason:
    """What happens next if nothing else comes."""
    phase, wanted, failure = snapshot.phase, snapshot.wanted, snapshot.failure
    at: float | None = None
    if phase is Phase.FAILED and failure is not None and wanted:
        at = failure.retry_at
        text = f"it is tried again in {duration(at - now)}" if at > now else "it is tried again now"
    elif phase is Phase.FAILED:
        text = "it goes off; the next demand tries again"
    elif phase is Phase.STOPPING:
        text = "it goes off" + (", and starts again at once" if wanted else "")
    elif phase is Phase.DRAINING:
        at = snapshot.since + drain
        text = f"it is stopped in {duration(max(0.0, at - now))} unless somebody needs it"
        if _leaving(snapshot):
            text = f"it is stopped in {duration(max(0.0, at - now))}"
        if snapshot.working:
            at, text = None, "it is stopped as soon as the running work is finished"
        if _leaving(snapshot) and wanted:
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
        if problem := _problem(snapshot):
            text = f"it becomes ready once this is over: {problem}"
    elif snapshot.working:
        text = "it stays on while work is running"
    else:
        at = max(lease.expiry for lease in snapshot.leases) + drain
        text = f"it is stopped in {duration(at - now)} unless somebody uses it before"
    unknown = "observed" not in snapshot.state
    if not snapshot.leader and (wanted or unknown or not phase.settled or phase is Phase.READY):
        text += ", once a controller runs: start `qwenctl serve`"
    return Reason("next", text, until=at)


def _until_unblocked(snapshot: Snapshot, now: float) -> str:
    if not snapshot.blocks:
        return ""
    end = max(block.expiry for block in snapshot.blocks)
    return " until it is unblocked" if end == inf else f" for {duration(end - now)}, while blocked"


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, lower, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            high, low = whole // size, whole % size // part
            return f"{high} {unit} {low} {lower}" if low else f"{high} {unit}"
    return f"{whole} s"
