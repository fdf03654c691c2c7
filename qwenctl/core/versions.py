"""Which side is older, agent or proxy, and whether that keeps the GPU from its work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qwenctl.core.phase import Phase
from qwenctl.lib.text import escape_control

if TYPE_CHECKING:
    from qwenctl.core.snapshot import Snapshot

SILENT = 10.0
"""Seconds from the hello to a first report, after which the agent has not understood what to run."""

LONG = 60.0
"""Seconds of loading after which a difference is told: the agent may not know all that it is told."""

PROXY_UPGRADE = (
    "on the proxy's machine run `pip install --upgrade qwenctl` and start `qwenctl serve` anew"
)

_FORCE = "--force-reinstall --no-deps "


@dataclass(frozen=True)
class Skew:
    """Agent and proxy are of different builds."""

    agent: str
    proxy: str
    older: Literal["agent", "proxy", ""]
    """Empty: two builds of one version, of which nothing tells the older."""
    hinders: bool
    """Whether the agent cannot follow the proxy. If not, it may do so."""
    detail: str = ""

    @property
    def upgrade(self) -> str:
        """The commands that upgrade the older side; the agent's if neither is known to be."""
        same = _release(self.agent) == _release(self.proxy)
        force = _FORCE if same else ""  # pip takes one version for the other
        if self.older == "proxy":
            return PROXY_UPGRADE.replace("qwenctl`", f"{force}qwenctl`", 1)
        return (
            f"on the node run `sudo /opt/qwenctl/bin/pip install --upgrade {force}qwenctl` and "
            "`sudo /opt/qwenctl/bin/qwenctl-node install`"
        )

    def __str__(self) -> str:
        agent, proxy = f"the agent ({self.agent})", f"the proxy ({self.proxy})"
        if self.older == "proxy":
            text = f"{proxy} is older than {agent}"
        elif self.older == "agent":
            text = f"{agent} is older than {proxy}"
        else:
            text = f"{agent} and {proxy} are different builds"
        if self.hinders:
            text += ", and does not understand what it is told to run"
        return text + (f" ({self.detail})" if self.detail else "")


def skew(snapshot: Snapshot) -> Skew | None:
    """Return how agent and proxy differ; None: they do not, or it is not known."""
    node = snapshot.node
    agent, proxy = escape_control(node.get("version", "")), node.get("proxy_version", "")
    if not agent or not proxy or agent == proxy:
        return None
    ours = (int(node.get("proxy_protocol") or 1), _release(proxy))
    theirs = (int(node.get("protocol") or 1), _release(agent))
    older: Literal["agent", "proxy", ""] = ""
    if ours != theirs:
        older = "agent" if theirs < ours else "proxy"
    detail = _not_understood(snapshot)
    return Skew(agent, proxy, older, bool(detail) or _is_silent(snapshot), detail)


def trouble(snapshot: Snapshot) -> Skew | None:
    """Return a difference that explains why the GPU does not become ready."""
    found = skew(snapshot)
    if found is None or snapshot.phase not in (Phase.LOADING, Phase.FAILED):
        return None
    late = snapshot.phase is Phase.FAILED or snapshot.now - snapshot.since >= LONG
    return found if found.hinders or late else None


def as_json(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return `trouble` for the status; None if there is none."""
    found = trouble(snapshot)
    if found is None:
        return None
    return {
        "agent": found.agent,
        "proxy": found.proxy,
        "older": found.older,
        "hinders": found.hinders,
        "text": str(found),
        "upgrade": found.upgrade,
    }


def _not_understood(snapshot: Snapshot) -> str:
    report = snapshot.report
    told = report.not_understood if report else snapshot.node.get("not_understood", "")
    return escape_control(told)


def _is_silent(snapshot: Snapshot) -> bool:
    """Whether the agent says hello again and again, and never reports."""
    view = snapshot.node_view
    fresh = view.heartbeat_age is not None and view.heartbeat_age < SILENT
    loading = snapshot.phase is Phase.LOADING and snapshot.now - snapshot.since >= SILENT
    return loading and fresh and not snapshot.node.get("state")


def _release(version: str) -> tuple[int, ...]:
    """Return the release's numbers (PEP 440): ``(0, 1, 0)``."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version.partition("+")[0]))
