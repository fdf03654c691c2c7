"""Decide what happens to a request, by visitor, kind of request and state of the GPU.

Pure: `admit` calls it with what the store says; the data planes perform the decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qwenctl.config.gpu import GpuConfig
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.rules import Activity, Ambiguous
from qwenctl.core.snapshot import Snapshot

from ..http.request import Request


class Action(str, Enum):
    """An action on a request."""

    FORWARD = "forward"
    LEASE = "lease"  # turn it into a lease first, then look again (the GPU is draining)
    FINISH = "finish"  # forward it as soon as the store counts it as work in flight
    HOLD = "hold"  # wake, and keep the request until the GPU is ready
    WAKE = "wake"  # wake, and answer 503 with Retry-After
    PAGE = "page"  # the waiting page
    UNREADY = "unready"  # 503 with Retry-After, without waking
    SIGN_IN = "sign_in"
    REFUSE = "refuse"
    CROSS_SITE = "cross_site"  # 403: another site made the visitor's browser send it
    AMBIGUOUS = "ambiguous"  # 400: what serves the path may take it for another one


@dataclass(frozen=True)
class Decision:
    """An action, and why."""

    action: Action
    activity: Activity = Activity.PASSIVE
    why: str = ""
    wakes: bool = False
    """Whether the request may start the GPU, by its rule, its visitor and its origin."""

    @property
    def counts(self) -> bool:
        """Return whether the request keeps the GPU on while it is in flight."""
        return self.activity in (Activity.WAKES, Activity.KEEPS_ON)


_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 §9.2.1)."""

_FOREIGN = "a page of another site must not use the GPU unless proxy.cors_origins names the site"
_FORWARD = {activity: Decision(Action.FORWARD, activity) for activity in Activity}


def may_wake(gpu: GpuConfig, identity: Identity | None, *, by_page: bool = False) -> bool:
    """Return whether a visitor may wake a GPU by a request, or by the waiting page's button.

    ========  ==================  ===================  ===============
    wake_on   API key             other clients, tabs  waiting page
    ========  ==================  ===================  ===============
    visit     yes                 yes                  yes
    click     yes                 no                   yes
    never     yes                 no                   no
    ========  ==================  ===================  ===============
    """
    if identity is None or not identity.may_wake:
        return False
    if identity.wakes_always:
        return True
    return gpu.wake_on == "visit" or (gpu.wake_on == "click" and by_page)


def decide(
    gpu: GpuConfig, request: Request, identity: Identity | None, snapshot: Snapshot
) -> Decision:
    """Return the decision for a request by a snapshot of the GPU."""
    if identity is None:
        return Decision(Action.SIGN_IN)
    if not identity.may_use:
        return Decision(Action.REFUSE, why="this visitor may only see the status")
    try:
        activity = gpu.rule_table.classify_sent(request.method, request.sent_path, request.headers)
    except Ambiguous as error:
        return Decision(Action.AMBIGUOUS, why=str(error))
    if activity is Activity.REFUSED:
        return Decision(Action.REFUSE, activity, "a rule of this GPU refuses such requests")
    phase = snapshot.phase
    drains = phase is Phase.DRAINING and not snapshot.blocks
    if (phase.serves or drains) and _is_forged(request, identity, activity):
        return Decision(Action.CROSS_SITE, activity, _FOREIGN)
    if phase.serves:
        return _FORWARD[activity]
    no = _no_wake(gpu, request, identity, activity)
    if drains and snapshot.interrupted_at is not None:
        # The cloud reclaims the instance: new work waits for the next start, and requests that show
        # the running work pass. A request that belongs to that work (the stream of an answer whose
        # request has been accepted) must be recorded first: without work the instance is stopped.
        if activity is Activity.PASSIVE and not request.is_navigation:
            return _FORWARD[activity]
        if activity is Activity.KEEPS_ON and not request.is_navigation:
            return Decision(Action.FINISH, activity)
    elif drains:
        action = Action.FORWARD if activity is Activity.PASSIVE else Action.LEASE
        return Decision(action, activity, wakes=not no)
    if request.is_navigation:
        return Decision(Action.PAGE, activity)
    if no:
        return Decision(Action.UNREADY, activity, no)
    hold = gpu.api == "hold" or request.from_browser
    return Decision(Action.HOLD if hold else Action.WAKE, activity, wakes=True)


def _is_forged(request: Request, identity: Identity, activity: Activity) -> bool:
    """Return whether a page of another site made the visitor's browser use the GPU (CSRF).

    Links to the WebUI work, and so do its images in other pages. Forms, scripts and WebSockets do
    not: browsers let any page open those to any address, this machine's included.
    """
    if not _is_foreign(request, identity):
        return False
    if request.is_navigation and "origin" not in request.headers:
        return False
    # A server in front may have taken the Upgrade out of a WebSocket's handshake.
    safe = request.method in _SAFE and "sec-websocket-key" not in request.headers
    return not safe or activity is not Activity.PASSIVE


def _is_foreign(request: Request, identity: Identity) -> bool:
    """Return whether another site's page may have used the visitor's credential."""
    ours = request.same_origin or request.allowed_origin
    return identity.needs_same_origin and not ours


def _no_wake(gpu: GpuConfig, request: Request, identity: Identity, activity: Activity) -> str:
    """Return why a request does not start the GPU, or an empty text if it does."""
    if activity is not Activity.WAKES:
        return "this request does not wake it"
    if _is_foreign(request, identity):
        return (
            "a request from another site does not wake it unless proxy.cors_origins names the site"
        )
    if may_wake(gpu, identity):
        return ""
    if not identity.may_wake:
        return "this visitor may not wake it"
    if gpu.wake_on == "click":
        return "it is woken from its page"
    return "it is woken from the command line, by API keys and by schedules only"
