"""Why messages of a GPU's agent are refused: another secret, or a version that is not understood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenctl.core.versions import PROXY_UPGRADE
from qwenctl.lib.text import one_line

if TYPE_CHECKING:
    from qwenctl.core.snapshot import Snapshot

FRESH = 60.0
"""Seconds for which a refusal is told."""

HEARD = 10.0
"""Seconds for which an agent that was heard contradicts it: anybody can send an unsigned message."""

SECRET, MALFORMED = "secret", "malformed"


@dataclass(frozen=True)
class Refusal:
    """Why the agent is not heard; ``str()`` returns it as a sentence."""

    code: str
    text: str
    advice: str

    def __str__(self) -> str:
        return self.text


def refusal(snapshot: Snapshot) -> Refusal | None:
    """Return why the agent's messages are refused; None: they are not, or it is heard."""
    at, age = snapshot.time("refused_at"), snapshot.node_view.heartbeat_age
    code = snapshot.state.get("refused_code", "")
    if at is None or snapshot.now - at > FRESH or (age is not None and age < HEARD):
        return None
    peer = one_line(snapshot.state.get("refused_peer", ""))
    from_ = f" (a message from {peer} was refused)" if peer else ""
    if code == SECRET:
        whose = (
            "this instance's agent"
            if peer and peer == snapshot.address
            else ("an agent that says it is this GPU's")
        )
        return Refusal(
            code,
            f"{whose} belongs to another deployment, or its secret differs{from_}",
            "Put this deployment's node secret into the node's file, which counts at once; if the "
            "instance is another deployment's, correct the settings of one of them.",
        )
    if code == MALFORMED:
        why = one_line(snapshot.state.get("refused_why", ""))
        text = f"the proxy does not understand the agent and is probably older{from_}: {why}"
        return Refusal(code, text, f"Upgrade the proxy: {PROXY_UPGRADE}.")
    return None
