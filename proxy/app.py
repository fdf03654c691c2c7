"""Compose the proxy. The path of a request:

::

    request ─► (CorsHeaders) ─► HostCheck ─► Router ─┬─ /_qwenctl/api/events ─► StatusStream     (async, long)
                                    ├─ /_qwenctl/gate       ─► ForwardAuth      (async, quick)
                                    ├─ /_qwenctl/healthz …  ─► Health           (async, quick)
                                    ├─ /_qwenctl/node/…     ─► NodeApi          (async, store in threads)
                                    ├─ /_qwenctl/…          ─► Flask            (threads, short)
                                    └─ everything else      ─► DataPlane        (async, long)
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable

from a2wsgi import WSGIMiddleware
from uvicorn.protocols.utils import ClientDisconnected

from qwenctl.clouds.claimed import claiming
from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.control.controller import Controller, owner_name
from qwenctl.control.former import ConfiguredController, RemovedGpus
from qwenctl.control.holders import Keeper
from qwenctl.protocol.messages import MAX_MESSAGE_BYTES
from qwenctl.store.deployment_id import cached_id
from qwenctl.store.store import Store
from qwenctl.store.watcher import Watcher

from .auth.authenticator import Authenticators
from .control.flask_app import make_flask
from .control.health import Health
from .control.node_api import NodeApi
from .control.pages import PREFIX, Pages, crashed
from .control.status_stream import StatusStream
from .data.admit import Admit
from .data.forward import Forwarder
from .data.plane import DataPlane
from .data.services import Services
from .data.snapshot_cache import SnapshotCache
from .data.usage import UsageTracker
from .data.waiting import WaitingPages
from .front.forward_auth import ForwardAuth
from .http.cors import Cors, CorsHeaders
from .http.cut import AnswerCut
from .http.metrics import Metrics
from .http.middleware import BoundedBody, HostCheck
from .http.problem import refuse, refuse_websocket, send_problem
from .http.request import ASGIApp, Receive, Request, Scope, Send, networks

log = logging.getLogger("qwenctl.proxy")

SERVICE_RESTART = 1012
"""The close code that tells a client to connect again (IANA's registry of RFC 6455 §11.7)."""

GATE = f"{PREFIX}/gate"


class Proxy:
    """The ASGI application and its background threads."""

    def __init__(self, config: Config, store: Store, *, snapshot_delay: float = 0.0) -> None:
        """``snapshot_delay`` delays the data plane's snapshots, in seconds; for tests."""
        owner = owner_name()
        snapshots = SnapshotCache(store, list(config.gpu), delay=snapshot_delay)
        usage, metrics = UsageTracker(store, config.gpu, owner), Metrics()
        self.services = services = Services(
            config,
            store,
            owner,
            networks(config.proxy.trusted_proxies),
            snapshots,
            usage,
            Authenticators(config, store),
            metrics,
            Admit(store, snapshots, usage, metrics),
        )
        waiting = WaitingPages(config, store)
        self.stream = StatusStream(services, waiting)
        self.pages = Pages(services, self.stream, waiting)
        self.forwarder = Forwarder()
        self.data = DataPlane(services, self.forwarder, self.pages)
        self.gate = ForwardAuth(services)
        self.health = Health(store)
        self._removed = RemovedGpus(config, store, owner=owner, observer=metrics)
        self.nodes = NodeApi(config, store, metrics, usage.in_flight, removed=self._removed.gpus)
        flask = make_flask(services, self.stream, self.pages, waiting)
        threads: ASGIApp = WSGIMiddleware(flask, workers=16)  # type: ignore[arg-type, assignment]
        self._routes: dict[str, ASGIApp] = {
            f"{PREFIX}/api/events": self.stream,
            GATE: self.gate,
            f"{PREFIX}/healthz": self.health,
            f"{PREFIX}/readyz": self.health,
            **dict.fromkeys(NodeApi.PATHS, BoundedBody(self.nodes, MAX_MESSAGE_BYTES)),
        }
        self._control = BoundedBody(threads, MAX_MESSAGE_BYTES)
        self._asgi: ASGIApp = HostCheck(self._route, config, services.trusted)
        if (cors := Cors(config.proxy.cors_origins)).configured:
            self._asgi = CorsHeaders(self._asgi, cors, services.trusted)
        self._stop = threading.Event()
        owner_id = cached_id(store, config.state_path)
        self._controllers: dict[str, Controller] = {
            name: ConfiguredController(
                name,
                gpu,
                store,
                claiming(make_provider(name, gpu, config), f"{config.deployment}/{name}", owner_id),
                config=config,
                owner=owner,
                observer=metrics,
            )
            for name, gpu in config.gpu.items()
        }
        self._keepers = {name: Keeper(config, name, store) for name in config.gpu}
        self._threads: list[threading.Thread] = []
        self._watcher: Watcher | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            if scope["path"] == GATE:
                send = self.gate.carried(scope, send)  # HostCheck's refusals, too
            try:
                await self._asgi(scope, receive, send)
            except asyncio.CancelledError:
                if scope["type"] != "websocket":
                    raise AnswerCut from None
                await send({"type": "websocket.close", "code": SERVICE_RESTART})
            except (AnswerCut, ClientDisconnected):
                raise  # no mistake of ours
            except Exception:
                await self._explain_crash(scope, send)

    async def _explain_crash(self, scope: Scope, send: Send) -> None:
        """Answer 500 after a mistake of ours; the server ends an answer that has begun."""
        problem = crashed(scope["path"])
        request = Request.of(scope, self.services.trusted)
        await refuse(request, scope, send, problem.status, problem.code, problem.detail)

    def _route(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path: str = scope["path"]
        if not Request.of(scope, self.services.trusted).target.startswith("/"):
            # "OPTIONS *" is about the server (RFC 9110 §9.3.7); all else is a forged host.
            return self._no_path(scope, send)
        if path != PREFIX and not path.startswith(PREFIX + "/"):
            return self.data(scope, receive, send)
        if scope["type"] == "websocket":
            return refuse_websocket(scope, send, 404, "not_found", "there is no WebSocket here")
        return self._routes.get(path, self._control)(scope, receive, send)

    async def _no_path(self, scope: Scope, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, send, 400, "bad_target", "the target is no path")
            return
        request = Request.of(scope, self.services.trusted)
        if request.method == "OPTIONS" and request.target == "*":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send_problem(request, send, 400, "bad_target", "the target is no path")

    # Start and shutdown

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
        await self.services.snapshots.start()
        self.services.usage.start()
        # Most objects of now stay: keep the garbage collector from visiting them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        if sessions := self.services.authenticators.sessions:
            await asyncio.to_thread(sessions.refresh)
            self._run("sessions", sessions.run, self._stop)
        self._watcher = self.services.store.watch(
            list(self._controllers), lambda gpu, _: self._controllers[gpu].wake()
        )
        for name, controller in self._controllers.items():
            self._run(f"controller-{name}", controller.run, self._stop, watch=False)
            self._run(f"holders-{name}", self._keepers[name].run, self._stop, controller.leads)
        self._run("removed-gpus", self._removed.run, self._stop)

    def _run(self, name: str, target: Callable[..., None], *args: object, **options: bool) -> None:
        thread = threading.Thread(target=target, args=args, kwargs=options, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Let a successor start and stop the GPUs; answer held requests and end our streams.

        What is forwarded goes on, and the in-flight leases with it.
        """
        self._stop.set()
        for controller in self._controllers.values():
            controller.wake()
        self.data.close()
        self.stream.close()

    def works(self, quiet: float) -> bool:
        """Return whether requests are in flight; end open tabs that have been ``quiet`` so long.

        As long as anything counts as use they stay: Gradio ends a tab's work with its heartbeat.
        """
        if any(self.services.usage.in_flight(name) for name in self._controllers):
            return True
        return self.data.end_quiet(quiet)

    async def _shut_down(self) -> None:
        self.close()
        await self.services.usage.stop()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 5.0)
        if self._watcher:
            await asyncio.to_thread(self._watcher.stop)
        await self.services.snapshots.stop()
        for part in (
            self.stream,
            self.pages,
            self.nodes,
            self.health,
            self.data,
            self.services.admit,
            self.forwarder,
        ):
            await part.stop()
        self.services.store.close()
