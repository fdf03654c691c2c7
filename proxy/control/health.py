"""Answer liveness and readiness probes, apart from everything that may be slow.

A liveness probe that waited for the store, or for a thread that waits for it, would have an
orchestrator restart the proxy and cut its streams.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from qwenctl import __version__
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..http.problem import send_problem
from ..http.request import Receive, Request, Scope, Send, send_answer
from .pages import store_lost

READY_SECONDS = 2.0
"""How long the store may take to answer a readiness probe, in seconds."""


class Health:
    """``/healthz``: the process lives. ``/readyz``: its store can be written to, too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ready")

    async def stop(self) -> None:
        self._thread.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        request = Request.of(scope, ())
        if request.method not in ("GET", "HEAD"):
            detail = "the method is not allowed for the requested URL"
            await send_problem(request, send, 405, "method_not_allowed", detail)
        elif request.path.endswith("/healthz"):
            await _ok(request, send, {"status": "ok", "version": __version__})
        else:
            await self._ready(request, send)

    async def _ready(self, request: Request, send: Send) -> None:
        asked = asyncio.get_running_loop().run_in_executor(self._thread, self._store.check)
        try:
            await asyncio.wait_for(asked, READY_SECONDS)
        except StoreUnavailable as error:
            problem = store_lost(error)
        except asyncio.TimeoutError:
            silent = f"the store has not answered within {READY_SECONDS:g} s"
            problem = store_lost(StoreUnavailable(silent))
        else:
            await _ok(request, send, {"status": "ok"})
            return
        await send_problem(
            request,
            send,
            problem.status,
            problem.code,
            problem.detail,
            retry_after=problem.retry_after,
        )


async def _ok(request: Request, send: Send, content: Mapping[str, str]) -> None:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    await send_answer(request, send, 200, headers, json.dumps(content).encode() + b"\n")
