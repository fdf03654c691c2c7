"""One request on its way through the data plane, and the ways to turn it away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase

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

    async def unready(self, why: str) -> None:
        """503 with the state of the GPU, and when to come again."""
        snapshot = self.view.snapshot
        if snapshot.blocks:
            await self.blocked()
            return
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if failure:
            detail = f"the GPU {self.name!r} has failed to start: {failure.headline}"
        else:
            detail = f"the GPU {self.name!r} is {snapshot.phase.value}: {why}"
        estimate = self.gpu.boot_estimate
        await self.problem(
            503,
            failure.code if failure else "not_ready",
            detail,
            max(2.0, min(15.0, estimate / 4)) if snapshot.phase.waking else min(60.0, estimate),
        )

    async def blocked(self) -> None:
        """503 with who has blocked the GPU, why, and until when."""
        snapshot = self.view.snapshot
        block = snapshot.blocks[0] if snapshot.blocks else None
        left = block.expiry - snapshot.now if block else 60.0
        because = f": {block.reason}" if block and block.reason else ""
        await self.problem(
            503,
            "blocked",
            f"the GPU {self.name!r} is blocked by {block.name if block else 'somebody'}{because}",
            None if left == float("inf") else left,
        )
