"""The whole proxy, composed in one place: read this to see the path of a request.

::

    request ─► HostCheck ─► Router ─┬─ /_qwenctl/api/events ─► Feed.stream      (async, long)
                                    ├─ /_qwenctl/gate       ─► ForwardAuth      (async, quick)
                                    ├─ /_qwenctl/…          ─► BoundedBody ─► NodeDoor ─► Flask (threads, short)
                                    └─ everything else      ─► DataPlane        (async, long)
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Awaitable
from urllib.parse import urlsplit

from a2wsgi import WSGIMiddleware

from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.control.controller import Controller, owner_name
from qwenctl.control.holders import Scheduler
from qwenctl.lib.settings_types import is_loopback
from qwenctl.protocol.messages import MAX_MESSAGE_BYTES
from qwenctl.store.store import Store
from qwenctl.store.watcher import Watcher

from .auth.password import make_authenticator
from .control.node_api import NodeDesk, NodeDoor
from .control.status_stream import Feed
from .control.views import PREFIX, Parts, make_control
from .data.admit import Admit
from .data.forward import Forwarder
from .data.plane import DataPlane, with_path
from .data.snapshot_cache import SnapshotCache
from .data.usage import UsageTracker
from .front.forward_auth import ForwardAuth
from .http.metrics import Metrics
from .http.problem import refuse_websocket, send_problem
from .http.request import ASGIApp, Networks, Receive, Request, Scope, Send, networks

__all__ = ["Proxy"]

log = logging.getLogger("qwenctl.proxy")

BODY_SECONDS = 20.0
"""How long a request to the control plane may take to arrive."""


class Proxy:
    """The ASGI application and everything that runs beside it."""

    def __init__(self, config: Config, store: Store, *, snapshot_delay: float = 0.0) -> None:
        """``snapshot_delay`` makes the data plane's view late, in seconds; for tests."""
        self.config = config
        self.store = store
        self.owner = owner_name()
        self.metrics = Metrics()
        trusted = networks(config.proxy.trusted_proxies)
        self.authenticator = make_authenticator(config)
        self.snapshots = SnapshotCache(store, list(config.gpu), delay=snapshot_delay)
        self.usage = UsageTracker(store, config.gpu, self.owner)
        self.admit = Admit(store, self.snapshots, self.usage, self.metrics)
        self.forwarder = Forwarder()
        self.feed = Feed(config, store, self.snapshots, self.authenticator, trusted)
        self.trusted = trusted
        desk = NodeDesk(config, store, self.metrics, self.usage.in_flight)
        flask = make_control(
            Parts(
                config,
                store,
                self.authenticator,
                self.feed,
                desk,
                self.metrics,
                self.usage,
                trusted,
            )
        )
        threads: ASGIApp = WSGIMiddleware(flask, workers=16)  # type: ignore[arg-type, assignment]
        self.control: ASGIApp = BoundedBody(NodeDoor(desk, threads))
        self.data = DataPlane(
            config,
            store,
            self.snapshots,
            self.usage,
            self.admit,
            self.forwarder,
            self.authenticator,
            self._page,
            self.metrics,
            trusted,
            self.owner,
        )
        self.gate = ForwardAuth(
            config, self.snapshots, self.usage, self.admit, self.authenticator, trusted
        )
        self.asgi: ASGIApp = HostCheck(self._route, config, trusted)
        self._stop = threading.Event()
        self._controllers = {
            name: Controller(name, gpu, store, make_provider(name, gpu, config), owner=self.owner)
            for name, gpu in config.gpu.items()
        }
        self._scheduler = Scheduler(config, store)
        self._threads: list[threading.Thread] = []
        self._watcher: Watcher | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            try:
                await self.asgi(scope, receive, send)
            except asyncio.CancelledError:
                # The server goes down and has waited long enough; no traceback for each stream.
                log.info("%s was cut off by the shutdown", scope["path"])

    def _route(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path: str = scope["path"]
        if not Request.of(scope, self.trusted).target.startswith("/"):
            # "OPTIONS *" asks the server itself; anything else of the kind is a forged host.
            return self._no_path(scope, send)
        if path != PREFIX and not path.startswith(PREFIX + "/"):
            return self.data(scope, receive, send)
        if scope["type"] == "websocket":
            return refuse_websocket(scope, send, 404, "not_found", "there is no WebSocket here")
        if path == f"{PREFIX}/api/events":
            return self.feed.stream(scope, receive, send)
        if path == f"{PREFIX}/gate":
            return self.gate(scope, receive, send)
        return self.control(scope, receive, send)

    async def _no_path(self, scope: Scope, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, send, 400, "bad_target", "the target is no path")
            return
        request = Request.of(scope, self.trusted)
        if request.method == "OPTIONS" and request.target == "*":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send_problem(request, send, 400, "bad_target", "the target is no path")

    async def _page(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Render one of the control plane's pages as the answer to any other request."""
        await with_path(self.control, f"{PREFIX}/{name}")(scope, receive, send)

    # Beginning and end

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:
            log.exception("the proxy cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._shut_down()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        await self.forwarder.start()
        await self.snapshots.start()
        self.usage.start()
        # Most of what lives now lives for ever: do not look through it at each collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        self._watcher = self.store.watch(
            list(self.config.gpu), lambda gpu, _: self._controllers[gpu].wake()
        )
        for name, controller in self._controllers.items():
            thread = threading.Thread(
                target=controller.run,
                args=(self._stop,),
                kwargs={"watch": False},
                name=f"controller-{name}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        if self._scheduler:
            thread = threading.Thread(
                target=self._scheduler.run, args=(self._stop,), name="scheduler", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """The server has been told to end: let go of everybody who would wait for long."""
        self.data.close()
        self.feed.close()

    async def _shut_down(self) -> None:
        self._stop.set()
        for controller in self._controllers.values():
            controller.wake()
        await self.usage.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 5.0)
        if self._watcher:
            await asyncio.to_thread(self._watcher.stop)
        await self.snapshots.stop()
        await self.feed.stop()
        await self.data.stop()
        await self.admit.stop()
        await self.forwarder.stop()
        self.store.close()


class BoundedBody:
    """Reads a small request body before the application sees it, so that a slow sender holds a
    coroutine and not one of the control plane's threads."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks: list[bytes] = []
        size = 0
        more = (
            scope.get("qwenctl.original_path") is None
        )  # a page in place of another answer: no body
        deadline = time.monotonic() + BODY_SECONDS
        try:
            while more:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
                if message["type"] == "http.disconnect":
                    return
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                more = message.get("more_body", False)
                if size > MAX_MESSAGE_BYTES:
                    await self._refuse(scope, send, 413, "too_large", "the body is too large")
                    return
        except asyncio.TimeoutError:
            await self._refuse(scope, send, 408, "too_slow", "the body did not arrive in time")
            return
        body = b"".join(chunks)

        async def read() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, read, send)

    async def _refuse(self, scope: Scope, send: Send, status: int, code: str, why: str) -> None:
        await send_problem(Request.of(scope, ()), send, status, code, why)


class HostCheck:
    """Without access control, only our own host names are answered: a site whose name has been
    pointed at this machine (DNS rebinding) would otherwise be as good as the user himself."""

    def __init__(self, app: ASGIApp, config: Config, trusted: Networks) -> None:
        self._app = app
        self._trusted = trusted
        self._open = config.access.mode != "none" or config.proxy.allow_anonymous
        names = {"localhost", *_hosts(config)}
        names |= {urlsplit(url).hostname or "" for url in (config.url, *config.node_urls)}
        names.add(config.proxy.listen.rpartition(":")[0].strip("[]"))
        self._names = {name.lower() for name in names if name}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if not self._open:
            request = Request.of(scope, self._trusted)
            name = request.hostname
            if name and name not in self._names and not is_loopback(name):
                detail = f"unknown host name {name!r}; set proxy.public_url or gpu.NAME.hosts"
                if scope["type"] == "websocket":
                    return refuse_websocket(scope, send, 421, "unknown_host", detail)
                return send_problem(request, send, 421, "unknown_host", detail)
        return self._app(scope, receive, send)


def _hosts(config: Config) -> list[str]:
    return [host for gpu in config.gpu.values() for host in gpu.hosts]
