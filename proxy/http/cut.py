"""Answers that end before their last byte: on purpose, so that they are no error of ours."""

from __future__ import annotations

from typing import Any, Protocol

from .problem import send_problem
from .request import ASGIApp, Receive, Request, Scope, Send


class AnswerCut(Exception):
    """The rest of the answer will not come; its client must see that it is not whole.

    The message says what the node has done; none: the proxy shuts down.
    """


class Cycle(Protocol):
    """uvicorn's request and its answer."""

    transport: Any
    disconnected: bool
    response_started: bool
    response_complete: bool


def cuttable(application: ASGIApp, cycle: Cycle) -> ASGIApp:
    """Wrap an application that raises `AnswerCut`: the connection is closed, or it is a 502 or 503.

    An application that just returned would do the same, and be logged as an error by uvicorn.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await application(scope, receive, send)
        except AnswerCut as cut:
            if not cycle.response_started and not cycle.disconnected:
                request = Request.of(scope, ())
                if why := str(cut):  # the node broke off an answer that was kept back
                    await send_problem(request, send, 502, "upstream_died", why)
                else:
                    why = "the proxy shuts down"
                    await send_problem(request, send, 503, "shutting_down", why, retry_after=1)
            elif not cycle.response_complete:
                cycle.disconnected = True
                cycle.transport.close()

    return run
