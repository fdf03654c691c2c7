"""Why an instance that is to be off still runs: its cloud refuses the stop, or cannot be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenctl.core import failures
from qwenctl.core.phase import Phase
from qwenctl.lib.text import countdown, one_line

if TYPE_CHECKING:
    from qwenctl.core.snapshot import Snapshot

PATIENCE = 60.0
"""Seconds after which an accepted stop without effect is told, and a refusal that may pass is
final for a command."""

SELF_STOP_PROTOCOL = 2
"""The first version of the node's protocol whose agent stops an instance that nobody needs."""

FRESH = 30.0
"""Seconds for which an agent counts as present after a message."""


@dataclass(frozen=True)
class StopProblem:
    """Why the stop has no effect; ``str()`` returns it as a sentence."""

    text: str
    code: str = ""
    """The failure code of the cloud's answer; empty if it accepted the stop."""
    since: float | None = None

    def __str__(self) -> str:
        return self.text

    def is_final(self, now: float) -> bool:
        """Whether waiting does not help: a person has to act, or it has lasted too long."""
        lasted = now - (now if self.since is None else self.since)
        return self.code in failures.NEEDS_PERSON or lasted >= PATIENCE


def is_due(snapshot: Snapshot) -> bool:
    """Return whether the instance is to be off, as far as is known."""
    if snapshot.phase is Phase.STOPPING:
        return True
    if snapshot.phase is Phase.FAILED:
        failure = snapshot.failure
        return failure is not None and failure.instance_is_bad
    return snapshot.phase.running and not snapshot.wanted and not snapshot.working


def stop_problem(snapshot: Snapshot) -> StopProblem | None:
    """Return why the instance is not stopped although nobody needs it; None: it is being stopped."""
    if not is_due(snapshot):
        return None
    state = snapshot.state
    # A record by an older version has no time; the next call, within seconds, gives it.
    refused = snapshot.time("refused_since")
    if snapshot.phase is Phase.STOPPING and refused is not None:
        refusal = state.get("call_error", "")
        code = state.get("call_code", "")
        verb = "does not answer" if code == failures.TRANSIENT else "refuses"
        text = f"the cloud {verb} the stop: {one_line(refusal)}"
        return StopProblem(text, code, refused)
    if error := state.get("observe_error"):
        code = state.get("observe_code", "")
        text = one_line(error)
        if code != failures.CLAIMED:
            text = f"the cloud cannot be asked, so it is not stopped: {text}"
        return StopProblem(text, code, snapshot.time("unseen_since"))
    accepted = snapshot.phase is Phase.STOPPING and snapshot.time("called_at") is not None
    if accepted and snapshot.observed.on and snapshot.now - snapshot.since >= PATIENCE:
        text = "the cloud has accepted the stop, but the instance still runs"
        return StopProblem(text, "", snapshot.since)
    return None


def self_stop(snapshot: Snapshot, dead_man: float) -> str:
    """Return when the agent stops an instance that its proxy cannot; empty if it does not."""
    since, age = snapshot.node_time("unneeded_since"), snapshot.node_view.heartbeat_age
    knows = int(snapshot.node.get("protocol") or 1) >= SELF_STOP_PROTOCOL
    if since is None or age is None or age > FRESH or not knows:
        return ""
    left = since + dead_man - snapshot.now
    when = countdown(left).replace("in ", "in about ", 1)
    return f"its agent stops it {when}, unless work is running"
