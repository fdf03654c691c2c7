"""One request on its way through the data plane, and the ways to turn it away."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import ceil, inf
from typing import Protocol

from qwenctl.core import leases
from qwenctl.core.failures import NEEDS_PERSON
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot

from ..http.problem import Problem, refuse_websocket, send_problem
from ..http.request import Receive, Request, Scope, Send
from .admit import Inbound


class Pages(Protocol):
    """Pages for a browser in place of an answer of the node."""

    async def waiting(self, request: Request, identity: Identity, gpu: str, send: Send) -> None:
        """Answer with the waiting page of a GPU."""
        ...

    async def sign_in(self, request: Request, send: Send) -> None:
        """Send a browser to the login form, and back afterwards."""
        ...

    async def problem(self, request: Request, send: Send, problem: Problem) -> None:
        """Answer with a page that explains an error."""
        ...


@dataclass(slots=True)
class Exchange(Inbound):
    """A request with its ASGI channels, and the ways to answer it without the node."""

    scope: Scope
    receive: Receive
    send: Send
    pages: Pages

    async def waiting_page(self) -> None:
        """Answer with the waiting page."""
        assert self.identity is not None  # else `admission` says SIGN_IN
        await self.pages.waiting(self.request, self.identity, self.name, self.send)

    async def problem(
        self, status: int, code: str, detail: str, retry_after: float | None = None
    ) -> None:
        """Answer with an error: a page for a person, problem+json for everybody else."""
        if self.scope["type"] == "websocket":
            await refuse_websocket(self.scope, self.send, status, code, detail)
        elif self.request.is_navigation:
            problem = Problem(status, code, detail, retry_after)
            await self.pages.problem(self.request, self.send, problem)
        else:
            await send_problem(
                self.request, self.send, status, code, detail, retry_after=retry_after
            )

    async def sign_in(self) -> None:
        """Send a person to the login form, tell a client what to send."""
        if self.request.is_navigation:
            await self.pages.sign_in(self.request, self.send)
        else:
            await self.problem(
                401,
                "sign_in",
                "send an API key as 'Authorization: Bearer qk_…', or sign in with a browser",
            )

    async def unready(self, why: str, *, wakes: bool = True) -> None:
        """503 with the state of the GPU, and when to come again if waiting helps.

        ``wakes``: whether the request, sent again, may start the GPU.
        """
        snapshot = self.view.snapshot
        if snapshot.blocks:
            await self.blocked(wakes=wakes)
            return
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if failure:
            detail = f"the GPU {self.name!r} has failed to start: {failure.headline}"
        else:
            detail = f"the GPU {self.name!r} is {snapshot.phase.value}: {why}"
        again = self._comes_in(snapshot) if wakes or snapshot.wanted else None
        await self.problem(503, failure.code if failure else "not_ready", detail, again)

    def _comes_in(self, snapshot: Snapshot) -> float | None:
        """Return in how many seconds to ask again for a GPU that somebody needs."""
        if snapshot.phase.waking:
            return max(2.0, min(15.0, self.gpu.boot_estimate / 4))
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if failure and failure.code in NEEDS_PERSON:
            return None
        if failure and failure.retry_at > snapshot.now:
            return failure.retry_at - snapshot.now
        return min(60.0, self.gpu.boot_estimate)

    async def blocked(self, *, wakes: bool = True) -> None:
        """503 with who has blocked the GPU, why, and until when."""
        snapshot = self.view.snapshot
        left = max((block.expiry - snapshot.now for block in snapshot.blocks), default=60.0)
        again = left if left < inf and (wakes or snapshot.leases) else None
        await self.problem(503, "blocked", blocked_detail(self.name, snapshot), again)


def blocked_detail(
    gpu: str, snapshot: Snapshot, by: str = "somebody", *, named: bool = True
) -> str:
    """Return who has blocked a GPU, until when, and why.

    ``by`` names the block where the snapshot has none, as it may be older. Not ``named``: without
    the account of an administrator.
    """
    block = max(snapshot.blocks, key=lambda block: block.expiry, default=None)
    by = block.name if block else by
    if not named and leases.kind_of(by) == leases.MAINTENANCE:
        by = leases.MAINTENANCE
    if block is None:
        return f"the GPU {gpu!r} is blocked by {by}"
    until = f" until {_clock(block.expiry, snapshot.now)}" if block.expiry < inf else ""
    because = f": {block.reason}" if block.reason else ""
    lasts = "" if until else "; it stays off until somebody unblocks it"
    return f"the GPU {gpu!r} is blocked{until} by {by}{because}{lasts}"


def _clock(seconds: float, now: float) -> str:
    """Return a time for clients in other time zones: ``14:00 UTC+08:00``, or with its date."""
    then = datetime.fromtimestamp(60 * ceil(seconds / 60)).astimezone()
    form = "%H:%M" if seconds - now < 43200 else "%Y-%m-%d %H:%M"
    offset = then.strftime("%z")
    return f"{then.strftime(form)} UTC" + (
        f"{offset[:3]}:{offset[3:5]}" if then.utcoffset() else ""
    )
