"""The status for waiting pages, and the stream of its changes.

A GPU's status is computed once for each change, however many pages wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from qwenctl.config.deployment import Config, UnknownTier
from qwenctl.core import leases
from qwenctl.core.identity import Identity
from qwenctl.core.phase import Phase
from qwenctl.core.status import page_status
from qwenctl.errors import StoreUnavailable

from ..data.admission import may_wake
from ..data.recent_events import RecentEvents
from ..data.routing import gpu_of
from ..data.services import Services
from ..data.waiting import RENEW_PAGE, WaitingPages
from ..http.problem import Problem, send_problem
from ..http.request import Receive, Request, Scope, Send

log = logging.getLogger("qwenctl.proxy")

KEEP_ALIVE = 15.0
"""How often the stream sends something, in seconds, so that proxies keep it open."""


class StatusStream:
    """Statuses of all GPUs, for Flask's threads and for the event stream."""

    def __init__(self, services: Services, waiting: WaitingPages) -> None:
        self._config = services.config
        self._waiting = waiting
        self._store = services.store
        self._snapshots = services.snapshots
        self._authenticators = services.authenticators
        self._trusted = services.trusted
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="status")
        self._lock = threading.Lock()
        self._texts: dict[str, tuple[int, asyncio.Task[dict[bool, str]]]] = {}
        self._closing = False
        self._cache: dict[str, tuple[float, dict[str, Any]]] = {}
        self._events = RecentEvents(services.store)

    def status(
        self, gpu: str, *, may_wake: bool, fresh: bool = False, max_age: float | None = None
    ) -> dict[str, Any]:
        """Return the status for a page, at most ``max_age`` seconds old, or ``fresh``.

        By default it is at most 0.2 s old, and never an old ``ready``.

        Raises:
            StoreUnavailable: Redis cannot be reached.
        """
        with self._lock:
            made_at, status = self._cache.get(gpu, (float("-inf"), {}))
            # A page opens the WebUI as soon as it reads "ready", which must be true then.
            usable = time.monotonic() - made_at <= (0.2 if max_age is None else max_age)
            usable = usable and (max_age is not None or status.get("phase") != Phase.READY)
            if fresh or not usable:
                status = page_status(
                    self._store.snapshot(gpu),
                    self._events.of(gpu),
                    self._config.gpu[gpu],
                    may_wake=True,
                )
                blocked = status["blocked"]
                if blocked and blocked["kind"] == leases.MAINTENANCE:
                    blocked["by"] = ""  # the name of an account of some machine
                self._cache[gpu] = (time.monotonic(), status)
        return {**status, "may_wake": may_wake}

    def close(self) -> None:
        """End the streams, because the proxy shuts down; their pages reconnect."""
        self._closing = True

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``GET /_qwenctl/api/events?gpu=NAME`` with an event for each change."""
        request = Request.of(scope, self._trusted)
        identity = self._authenticators.identify(request)
        if identity is None:
            await send_problem(request, send, 401, "sign_in", "sign in first")
            return
        try:
            name = asked_gpu(self._config, request)
        except Problem as error:
            await send_problem(request, send, error.status, error.code, error.detail)
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-store"),
                    (b"x-accel-buffering", b"no"),
                ],
            }
        )
        pump = asyncio.ensure_future(self._pump(name, request, identity, send))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pump.cancel()
            gone.cancel()

    async def _pump(self, name: str, request: Request, identity: Identity, send: Send) -> None:
        gpu = self._config.gpu[name]
        allowed = may_wake(gpu, identity, by_page=True)
        view = self._snapshots.peek(name)
        last, seen_at = "", time.monotonic()
        while not self._closing and self._authenticators.identify(request):
            changed = view.changed
            try:
                text = (await self._text(name))[allowed]
                if time.monotonic() - seen_at > min(RENEW_PAGE, gpu.idle_timeout / 3):
                    seen_at = time.monotonic()
                    await asyncio.get_running_loop().run_in_executor(
                        self._threads,
                        partial(self._waiting.seen, name, request, identity, watched=True),
                    )
            except Exception as error:  # the stream goes on with the next change
                level = logging.DEBUG if isinstance(error, StoreUnavailable) else logging.WARNING
                log.log(level, "%s: no status for a waiting page: %s", name, error)
                text = last
            if text != last:
                last = text
                data = f"event: status\ndata: {text}\n\n"
            else:
                data = ": still here\n\n"
            await send({"type": "http.response.body", "body": data.encode(), "more_body": True})
            try:
                await asyncio.wait_for(changed.wait(), min(KEEP_ALIVE, gpu.idle_timeout / 3))
            except asyncio.TimeoutError:
                pass
        await send({"type": "http.response.body", "body": b""})

    async def _text(self, name: str) -> dict[bool, str]:
        """Return the status as JSON, by whether the visitor may wake; one text a snapshot."""
        version = self._snapshots.peek(name).version
        known = self._texts.get(name)
        if known is None or known[0] != version:
            known = (version, asyncio.ensure_future(self._make_text(name)))
            self._texts[name] = known
        try:
            return await asyncio.shield(known[1])
        except Exception:
            if self._texts.get(name) is known:
                del self._texts[name]  # the next call tries again
            raise

    async def _make_text(self, name: str) -> dict[bool, str]:
        status = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self.status(name, may_wake=True, fresh=True)
        )
        return {
            allowed: json.dumps({**status, "may_wake": allowed}, ensure_ascii=False)
            for allowed in (True, False)
        }


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def asked_gpu(config: Config, request: Request) -> str:
    """Return the GPU of ``?gpu=NAME``, or else of the request's host and tier.

    Raises:
        Problem: there is no such GPU or tier.
    """
    names = parse_qs(request.target.partition("?")[2]).get("gpu")
    try:
        name = names[0] if names else gpu_of(config, request)
    except UnknownTier as error:
        raise Problem(400, "unknown_tier", str(error)) from None
    if name not in config.gpu:
        raise Problem(404, "no_such_gpu", "no such GPU is configured")
    return name
