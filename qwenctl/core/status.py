"""The status of a GPU as JSON, for the waiting page and ``qwenctl status``.

Nothing in it is secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from qwenctl.core import leases
from qwenctl.core.address import NodeAddress
from qwenctl.core.phase import Phase
from qwenctl.core.refusals import refusal
from qwenctl.core.stops import stop_problem
from qwenctl.core.versions import as_json, trouble
from qwenctl.core.wakes import STEPS, Mark, Outcome, Wake, expected, wakes
from qwenctl.core.words import (
    as_of_time,
    cause_of,
    is_leaving,
    lease_words,
    other_port,
    overdue_boot,
    present_failure,
    problem_of,
)
from qwenctl.lib.text import escape_control

if TYPE_CHECKING:
    from qwenctl.core.events import Event
    from qwenctl.core.snapshot import Lease, Snapshot

HISTORY = 1000
"""Number of events to pass: enough for the last 20 wakes, which the ETA is learned from."""


class GpuSettings(Protocol):
    """The part of `qwenctl.config.gpu.GpuConfig` that a status needs."""

    @property
    def address(self) -> str: ...
    @property
    def agent(self) -> bool: ...
    @property
    def boot_estimate(self) -> float: ...
    @property
    def machine(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def price_per_hour(self) -> float: ...
    @property
    def provider(self) -> str: ...
    @property
    def wake_on(self) -> str: ...


_PERCENT = re.compile(r"\(?\b\d{1,3}(?:\.\d+)?\s?%\)?[:,|]?\s*")

_KEYS = (*STEPS, "ready")
_ACTIVE = {Phase.BOOTING: "boot", Phase.LOADING: "load"}


def page_status(
    snapshot: Snapshot, events: Sequence[Event], gpu_config: GpuSettings, *, may_wake: bool
) -> dict[str, Any]:
    """Return the JSON that the waiting page shows.

    ``steps`` are in order ``request``, ``start``, ``boot``, ``load``, ``ready``; each is ``done``,
    ``active``, ``todo`` or ``failed``, with the seconds it took (or has taken so far) and the
    seconds it usually takes. ``elapsed_seconds`` counts from the click; ``eta_seconds`` is what is
    left, 0 when it takes longer than usual, null when the GPU is not on its way up. ``mode``: see
    `page_mode`; ``mode_if_wanted`` is for a page whose demand is not in the snapshot yet.
    """
    history = wakes(events)
    usual = expected(history, gpu_config.boot_estimate)
    wake = _present(history, snapshot)
    active = _active_step(snapshot, wake)
    steps = _steps(snapshot, wake, active, usual)
    eta = None
    if snapshot.wanted and active and snapshot.phase is not Phase.FAILED:
        position = _KEYS.index(active)
        eta = max(0.0, usual.get(active, 0.0) - (steps[position]["seconds"] or 0.0))
        eta += sum(usual[key] for key in STEPS[position + 1 :])
        eta = _as_reported(snapshot, eta)
    return {
        "gpu": snapshot.gpu,
        "phase": snapshot.phase.value,
        "wanted": snapshot.wanted,
        "steps": steps,
        "elapsed_seconds": _round(_elapsed(wake, snapshot)),
        "eta_seconds": _round(eta),
        "progress": _progress(snapshot),
        "problem": problem_of(snapshot),
        "interruption": _interruption(snapshot),
        "failure": _failure(snapshot),
        "note": snapshot.state.get("start_note", ""),
        "blocked": _blocked(snapshot),
        "wake_on": gpu_config.wake_on,
        "may_wake": may_wake,
        "mode": page_mode(snapshot, wanted=snapshot.wanted),
        "mode_if_wanted": page_mode(snapshot, wanted=True),
        **_agent_trouble(snapshot),
        **_after_block(snapshot),
        **_overdue(snapshot),
    }


def _as_reported(snapshot: Snapshot, eta: float) -> float | None:
    """Return the ETA no shorter than the node's own; None while the service does not start."""
    if snapshot.phase is not Phase.LOADING or snapshot.report is None:
        return eta
    return None if problem_of(snapshot) else max(eta, snapshot.report.progress.eta or 0.0)


def _overdue(snapshot: Snapshot) -> dict[str, Any]:
    """Return ``overdue`` if nothing is heard from a boot's agent, and where it is told to call."""
    if (late := overdue_boot(snapshot)) is None:
        return {}
    return {"overdue": {"seconds": _round(late[0]), "urls": late[1].split()}}


def _agent_trouble(snapshot: Snapshot) -> dict[str, str]:
    """Return ``agent_trouble`` if the agent is of no use: why, as the key of a text ``agent.…``."""
    if refused := refusal(snapshot):
        return {"agent_trouble": refused.code}
    if (found := trouble(snapshot)) is None:
        return {}
    return {"agent_trouble": {"agent": "older", "proxy": "newer", "": "differs"}[found.older]}


def _steps(
    snapshot: Snapshot, wake: Wake | None, active: str, usual: Mapping[str, float]
) -> list[dict[str, Any]]:
    position = _KEYS.index(active) if active else -1
    steps = []
    for index, key in enumerate(_KEYS):
        state = "done" if index < position else "todo"
        if index == position:
            state = "failed" if snapshot.phase is Phase.FAILED else "active"
        if snapshot.phase in (Phase.READY, Phase.DRAINING) and not is_leaving(snapshot):
            state = "done"
        seconds = wake.durations.get(key) if wake and state != "todo" else None
        if wake and state == "active" and seconds is None:
            began = wake.began(key) if key in STEPS else None
            seconds = None if began is None else snapshot.now - began
        known = {"seconds": _round(seconds), "expected": _round(usual.get(key))}
        steps.append({"key": key, "state": state, **known})
    return steps


_MODES = {
    Phase.OFF: ("asleep", "requested"),
    Phase.STOPPING: ("stopping", "restarting"),
    Phase.FAILED: ("failed", "retrying"),
}
"""Modes of phases in which demand changes the mode: without and with demand."""

_WAKING_MODES = frozenset(
    {
        "requested",
        "interrupted",
        "restarting",
        "starting",
        "booting",
        "loading",
        "troubled",
        "ready",
    }
)
_IDLE_MODES = frozenset({"asleep", "draining", "stopping", "failed"})


def page_mode(snapshot: Snapshot, *, wanted: bool) -> dict[str, Any]:
    """Return what the waiting page shows.

    ``name`` picks its picture and words; ``waking``: it shows steps and progress; ``idle``: it
    offers to wake the GPU. ``wanted`` is True for a page whose own demand is under way.
    """
    if snapshot.blocks and not snapshot.phase.serves:
        name = "blocked"
    elif snapshot.phase is Phase.STOPPING and stop_problem(snapshot):
        return {"name": "stop_refused", "waking": wanted, "idle": False}
    elif is_leaving(snapshot):
        name = "interrupted" if wanted else "stopping"
    elif problem_of(snapshot):
        name = "troubled"
    else:
        name = _MODES.get(snapshot.phase, (snapshot.phase.value,) * 2)[wanted]
    return {"name": name, "waking": name in _WAKING_MODES, "idle": name in _IDLE_MODES}


def _present(history: Sequence[Wake], snapshot: Snapshot) -> Wake | None:
    """Return the wake that the snapshot belongs to."""
    last = history[-1] if history and not is_leaving(snapshot) else None
    fitting = {
        Outcome.UNDER_WAY: snapshot.phase.waking or snapshot.phase is Phase.DRAINING,
        Outcome.READY: snapshot.phase in (Phase.READY, Phase.DRAINING),
        Outcome.FAILED: snapshot.phase is Phase.FAILED,
        Outcome.ABANDONED: False,
    }
    return last if last and fitting[last.outcome] else None


def _interruption(snapshot: Snapshot) -> dict[str, Any] | None:
    ends = snapshot.interruption_ends
    if ends is None:
        return None
    return {
        "action": snapshot.node.get("interruption", ""),
        "seconds_left": _round(max(0.0, ends - snapshot.now)),
    }


def _active_step(snapshot: Snapshot, wake: Wake | None) -> str:
    """Return the step that is under way or failed; empty if there is none."""
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
    if phase in (Phase.OFF, Phase.STOPPING) or is_leaving(snapshot):
        return "request" if snapshot.wanted else ""
    return _ACTIVE.get(phase, "ready")


def _elapsed(wake: Wake | None, snapshot: Snapshot) -> float | None:
    if wake is not None:
        end = wake.marks.get(Mark.READY, wake.ended_at)
        return (snapshot.now if end is None else end) - wake.started_at
    if snapshot.wanted and not snapshot.phase.serves:
        # Whoever used it until the cloud took it back waits from then on.
        from_ = snapshot.interrupted_at or 0.0
        asked = [max(lease.since, from_) for lease in snapshot.leases if lease.since is not None]
        return snapshot.now - min(asked) if asked else None
    return None


def _progress(snapshot: Snapshot) -> dict[str, Any] | None:
    if snapshot.phase is not Phase.LOADING or snapshot.report is None:
        return None
    progress = snapshot.report.progress
    text = progress.text if progress.percent is None else _PERCENT.sub("", progress.text).strip()
    words = {"phase": escape_control(progress.phase), "text": escape_control(text)}
    told = progress.phase or progress.text or problem_of(snapshot)
    return {**progress.model_dump(), **words} if told else None


def _failure(snapshot: Snapshot) -> dict[str, Any] | None:
    failure = present_failure(snapshot)
    if failure is None:
        return None
    again = snapshot.phase is Phase.FAILED and snapshot.wanted
    return {
        "code": failure.code,
        "message": escape_control(failure.headline),
        "attempts": failure.attempts,
        "retry_in_seconds": _round(max(0.0, failure.retry_at - snapshot.now)) if again else None,
    }


def _blocked(snapshot: Snapshot) -> dict[str, Any] | None:
    if not snapshot.blocks:
        return None
    block = _last_block(snapshot)
    return {
        "kind": block.kind,
        "by": block.actor,
        "reason": block.reason,
        "seconds_left": _left(block, snapshot.now),
    }


def _after_block(snapshot: Snapshot) -> dict[str, str]:
    """Return ``after_block``, what the GPU does after its blocks: ``restarts`` or ``stays`` off.

    It restarts for demand that outlives them, such as a standing `qwenctl up`. Nothing where that
    depends on when somebody unblocks.
    """
    if not snapshot.blocks:
        return {}
    last = _last_block(snapshot).expiry
    ends = max((lease.expiry for lease in snapshot.leases if not lease.is_work), default=0.0)
    if ends > last or ends == inf:
        return {"after_block": "restarts"}
    return {} if ends and last == inf else {"after_block": "stays"}


def _last_block(snapshot: Snapshot) -> Lease:
    return max(snapshot.blocks, key=lambda block: block.expiry)


def _left(lease: Lease, now: float) -> float | None:
    return None if lease.expiry == inf else _round(max(0.0, lease.expiry - now))


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def own_record(
    snapshot: Snapshot, events: Sequence[Event], gpu_config: GpuSettings
) -> tuple[Snapshot, Sequence[Event], str]:
    """Return the configured instance's record, or the name of another on record.

    A GPU of the same name may have been another instance, by an earlier configuration or by that of
    another directory.
    """
    recorded = snapshot.state.get("machine", "")
    if any(block.kind == leases.FORMER for block in snapshot.blocks):
        return snapshot, events, ""  # the other is being stopped
    if recorded and recorded != gpu_config.machine:
        return replace(snapshot, state={}, node={}), [], recorded
    if (since := snapshot.time("machine_since")) is None:
        return snapshot, events, ""
    others = [
        index
        for index, event in enumerate(events)
        if event.to is not None and event.to.settled and event.time < since
    ]
    return snapshot, events[others[-1] + 1 :] if others else events, ""


def full_status(
    snapshot: Snapshot, events: Sequence[Event], gpu_config: GpuSettings, *, url: str = ""
) -> dict[str, Any]:
    """Return all that is known of a GPU, as JSON types.

    Times are Unix seconds on the store's clock. ``cause`` is a code, ``cause_text`` the same in
    words, with the person who caused it.

    ``idle_seconds_left`` is how long it stays on if nobody uses it; null while it is off, blocked
    or working. ``cost_so_far`` is the price of the time since the instance booted; null without a
    price, until an agent reports that time, and from its stop on.

    ``stop_problem`` says why an instance that is to be off still runs; null if none does, or its
    stop is under way. ``port_problem`` says that the node's services have other ports than the
    settings say; empty if not.

    ``verified`` is whether a controller looks after it now. If none does, ``as_of`` is the time of
    the last look, and all else may have changed since. ``cloud.other`` names the instance that is
    on record instead of the configured one (see `own_record`).
    """
    now = snapshot.now
    snapshot, events, other = own_record(snapshot, events, gpu_config)
    page = page_status(snapshot, events, gpu_config, may_wake=not snapshot.blocks)
    for key in ("may_wake", "mode", "mode_if_wanted"):
        del page[key]
    history = wakes(events)
    return {
        **page,
        "now": now,
        "since": snapshot.since or None,
        "verified": bool(snapshot.leader),
        "as_of": as_of_time(snapshot),
        "cause": snapshot.state.get("cause", ""),
        "cause_text": cause_of(snapshot, events),
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
        "version_problem": as_json(snapshot),
        "agent_refused": _refused(snapshot),
        "stop_problem": _stop_problem(snapshot),
        "port_problem": other_port(snapshot, gpu_config.port),
        "schedule_trouble": snapshot.state.get("schedule_trouble", ""),
        "cloud": {**_cloud(snapshot), "other": other},
        "node": _node(snapshot),
        "last_wake": _wake(history[-1]) if history else None,
    }


def _stop_problem(snapshot: Snapshot) -> dict[str, Any] | None:
    problem = stop_problem(snapshot)
    if problem is None:
        return None
    return {"text": escape_control(problem.text), "code": problem.code, "since": problem.since}


def _refused(snapshot: Snapshot) -> dict[str, str] | None:
    refused = refusal(snapshot)
    return None if refused is None else dict(vars(refused))


def _cost(snapshot: Snapshot, gpu_config: GpuSettings) -> float | None:
    report, age = snapshot.report, snapshot.node_view.heartbeat_age
    told = gpu_config.agent and snapshot.phase.running
    if not gpu_config.price_per_hour or not told or report is None or age is None:
        return None
    return round((report.uptime + age) / 3600 * gpu_config.price_per_hour, 4)


def node_url(snapshot: Snapshot, gpu_config: GpuSettings) -> str:
    """Return the service's own URL, without a proxy; empty while it is unknown."""
    host = gpu_config.address or snapshot.address
    return NodeAddress(host, gpu_config.port).url if host else ""


def _idle_left(snapshot: Snapshot) -> float | None:
    if not snapshot.phase.serves or snapshot.working or not snapshot.wanted:
        return None
    return _round(max(0.0, max(lease.expiry for lease in snapshot.leases) - snapshot.now))


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
        "refused": snapshot.state.get("call_error", ""),
        "code": snapshot.state.get("observe_code", ""),
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
        "proxy_version": snapshot.node.get("proxy_version", ""),
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
