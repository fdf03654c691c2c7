"""The data plane: every request that is not ours goes to the node, waits for it, or is told why not.

A plain ASGI callable. The path of a request, top to bottom: whose GPU it is for, who asks
(`auth`), what to do with it (`admission`), and then forwarding (`forward`, `websocket`), holding, the
waiting page, or a problem (`exchange`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from qwenctl.config.deployment import Config, UnknownTier
from qwenctl.core import leases
from qwenctl.core.lifecycle import Phase
from qwenctl.core.rules import Activity
from qwenctl.core.snapshot import Admission
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..auth.authenticator import Authenticator
from ..http.metrics import Metrics
from ..http.problem import send_problem
from ..http.request import ASGIApp, Message, Networks, Receive, Request, Scope, Send
from .admission import Action, Decision, decide
from .exchange import Exchange, Pages
from .forward import ClientGone, Forwarder, NotConnected, UpstreamDied
from .model_finder import Models, TooMuchAhead
from .request_buffer import ReadAheadBudget, RequestBuffer
from .routing import gpu_of
from .snapshot_cache import FRESH, SnapshotCache
from .usage import INFLIGHT_TTL, UsageTracker
from .websocket import forward_websocket

__all__ = ["DataPlane", "with_path"]

log = logging.getLogger("qwenctl.proxy")

RENEW_DEMAND = 20.0
"""How often a held request renews its lease, in seconds, or a third of the idle timeout."""

RECHECK = 3.0
"""How long a request that found no node waits for the controller to say what has happened."""

LOOK_INTERVAL = 1.0
"""The controller is asked to look at the cloud once in so many seconds, however many requests fail."""

HOPELESS = frozenset({"denied", "not_found"})
"""Failures that no waiting mends: a person has to act."""

TOO_MUCH_AHEAD = (
    "too many large requests are waiting; name the tier in X-Qwenctl-Tier, or the model before the "
    "messages"
)

STORE_LOST = "the proxy cannot reach its store; nothing is started or stopped meanwhile"


class DataPlane:
    """Forwards, holds or refuses."""

    def __init__(
        self,
        config: Config,
        store: Store,
        snapshots: SnapshotCache,
        usage: UsageTracker,
        forwarder: Forwarder,
        authenticator: Authenticator,
        pages: Pages,
        metrics: Metrics,
        trusted: Networks,
        owner: str,
    ) -> None:
        self._config = config
        self._store = store
        self._snapshots = snapshots
        self._usage = usage
        self._forward = forwarder
        self._authenticator = authenticator
        self._pages = pages
        self._metrics = metrics
        self._trusted = trusted
        self._owner = owner
        self._ahead = ReadAheadBudget()
        self._models = Models(config, self._ahead)
        self._demands: dict[tuple[str, str, bool], asyncio.Task[Admission]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="demand")
        self._held = 0
        self._first_byte: dict[str, int] = {}
        self._looked_at: dict[str, float] = {}
        self._closing = False

    def close(self) -> None:
        """The proxy is going down: those who are held are told to come again."""
        self._closing = True
        for name in self._config.gpu:
            self._snapshots.peek(name).tell()

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.of(scope, self._trusted)
        names = self._config.gpus_at(request.hostname)
        if not names:
            await send_problem(request, send, 503, "no_gpu", "no GPU is configured")
            return
        name = names[0]
        exchange = Exchange(
            request,
            self._authenticator.identify(request),
            name,
            self._config.gpu[name],
            self._snapshots.peek(name),
            scope,
            receive,
            send,
            self._pages,
        )
        try:
            if len(names) > 1 and exchange.identity:
                await self._choose(exchange, names)
            while not await self._once(exchange):
                pass
        except ClientGone:
            self._metrics.count(exchange.name, "client_gone")
        except UnknownTier as error:
            await exchange.problem(400, "unknown_tier", str(error))
        except TooMuchAhead:
            await exchange.problem(503, "busy", TOO_MUCH_AHEAD, 5)
        except StoreUnavailable:
            await exchange.problem(503, "store_lost", STORE_LOST, 5)
        except UpstreamDied as error:
            await self._after_death(exchange, error)
        finally:
            if isinstance(exchange.receive, RequestBuffer):
                exchange.receive.close()

    async def _choose(self, exchange: Exchange, names: Sequence[str]) -> None:
        """Make it an exchange with the one of these GPUs that it is for."""
        model = ""
        if self._models.matters(names, exchange.request):
            model, exchange.receive = await self._models.read(exchange.request, exchange.receive)
        exchange.name = gpu_of(self._config, exchange.request, model)
        exchange.gpu, exchange.view = (
            self._config.gpu[exchange.name],
            self._snapshots.peek(exchange.name),
        )

    async def _once(self, exchange: Exchange) -> bool:
        """Judge the request and do as judged; whether that was the end of it."""
        exchange.view.used = True
        if exchange.view.age > FRESH:
            await self._snapshots.view(exchange.name)
        decision = decide(exchange.gpu, exchange.request, exchange.identity, exchange.view.snapshot)
        self._metrics.count(exchange.name, decision.action.value)
        match decision.action:
            case Action.FORWARD:
                return await self._to_node(exchange, decision)
            case Action.FINISH:
                return await self._finish(exchange, decision)
            case Action.SIGN_IN:
                await exchange.sign_in()
            case Action.REFUSE:
                await exchange.problem(403, "refused", decision.why)
            case Action.PAGE:
                await exchange.page("waiting")
            case Action.UNREADY:
                if exchange.view.lost:
                    raise StoreUnavailable(exchange.view.lost)
                await exchange.unready(decision.why)
            case Action.WAKE:
                admission = await self._demand(exchange, wake=True)
                await (
                    exchange.blocked()
                    if admission.blocked_by
                    else exchange.unready("it is being woken")
                )
            case Action.LEASE | Action.HOLD:
                return await self._hold(exchange, decision)
        return True

    # Forwarding

    async def _to_node(self, exchange: Exchange, decision: Decision) -> bool:
        """Forward; False if there turns out to be no node after all, which is to be judged anew."""
        name, snapshot = exchange.name, exchange.view.snapshot
        address = exchange.gpu.address or snapshot.address
        base = f"http://{f'[{address}]' if ':' in address else address}:{exchange.gpu.port}"
        try:
            if not address:
                raise NotConnected("the cloud has not said where the node is")
            if decision.counts or exchange.scope["type"] == "websocket":
                await self._counted(exchange, decision, base)
            else:
                send = self._noting_first_byte(exchange, snapshot.start_seq)
                await self._forward(base, exchange.request, exchange.receive, send)
        except NotConnected as error:
            log.info("%s: no connection to the node: %s", name, error)
            self._metrics.count(name, "not_connected")
            if await self._moved_on(exchange):
                return False
            await exchange.problem(
                502,
                "node_unreachable",
                "the node does not accept connections although it reported ready; "
                "the GPU's state is being checked",
                5,
            )
        return True

    async def _finish(self, exchange: Exchange, decision: Decision) -> bool:
        """Forward a part of the work that an instance is about to be stopped after; False if that
        is too late. Without the store, by which alone it could be stopped, it is forwarded."""
        assert exchange.identity is not None
        with self._usage.use(exchange.name, exchange.identity.lease):
            phase = await self._usage.recorded(exchange.name)
            if phase not in (Phase.READY, Phase.DRAINING, None):
                await self._snapshots.refresh(exchange.name)
                return False
            return await self._to_node(exchange, decision)

    async def _counted(self, exchange: Exchange, decision: Decision, base: str) -> None:
        """Forward what is use of the GPU from its first byte to its last, or at each message.
        (What is only finished is counted by `_finish`, from before it is forwarded.)"""
        lease = exchange.identity.lease if exchange.identity else leases.request("unknown")
        use = self._usage.use(exchange.name, lease)
        counts = decision.counts and decision.action is not Action.FINISH
        with use if counts else contextlib.nullcontext():
            if exchange.scope["type"] == "websocket":
                touch = use.touch if decision.activity is Activity.MESSAGES else _nothing
                await forward_websocket(
                    self._forward,
                    base,
                    exchange.request,
                    exchange.scope,
                    exchange.receive,
                    exchange.send,
                    touch,
                )
            else:
                send = self._noting_first_byte(exchange, exchange.view.snapshot.start_seq)
                await self._forward(base, exchange.request, exchange.receive, send)

    def _noting_first_byte(self, exchange: Exchange, seq: int) -> Send:
        """The first byte after a wake goes into the history, once in this process."""
        name = exchange.name
        if self._first_byte.get(name) == seq:
            return exchange.send

        async def noting(message: Message) -> None:
            await exchange.send(message)
            if self._first_byte.get(name) != seq:
                self._first_byte[name] = seq
                fields = {"actor": self._owner, "start_seq": str(seq)}
                self._in_background(lambda: self._store.note(name, "first-byte", **fields))

        return noting

    async def _moved_on(self, exchange: Exchange) -> bool:
        """After a refused connection: whether the GPU turns out not to be ready after all."""
        view = exchange.view
        seq = view.snapshot.start_seq
        self._look(exchange.name, "no connection to the node")
        until = time.monotonic() + RECHECK
        await self._snapshots.refresh(exchange.name)
        while (left := until - time.monotonic()) > 0 and not view.lost:
            if view.snapshot.phase not in (Phase.READY, Phase.DRAINING):
                return True
            if view.snapshot.start_seq != seq:
                return True
            view.used = True  # keep it fresh: what we wait for may come without a message
            await view.wait(left)
        return False

    async def _after_death(self, exchange: Exchange, error: UpstreamDied) -> None:
        self._metrics.count(exchange.name, "upstream_died")
        self._look(exchange.name, "upstream died")
        if error.started:
            # The status is out; ending without the last byte tells the client that it is not whole.
            log.info("%s: the node broke off an answer: %s", exchange.name, error)
            return
        await self._snapshots.refresh(exchange.name)
        phase = exchange.view.snapshot.phase
        # A person gets a page with a link, and not the waiting page, which opens this one by itself:
        # a WebUI that each visit breaks would be visited for ever.
        if phase.serves or exchange.request.is_navigation:
            await exchange.problem(
                502,
                "upstream_died",
                "the node broke the connection before it answered; the GPU's state is being checked",
            )
        else:
            await exchange.unready(f"the GPU is {phase.value}")

    def _look(self, name: str, cause: str) -> None:
        now = time.monotonic()
        if now - self._looked_at.get(name, float("-inf")) >= LOOK_INTERVAL:
            self._looked_at[name] = now
            self._in_background(lambda: self._store.look(name, actor=self._owner, cause=cause))

    def _in_background(self, write: Callable[[], None]) -> None:
        def run() -> None:
            with contextlib.suppress(StoreUnavailable):
                write()

        with contextlib.suppress(RuntimeError):  # shutting down
            self._threads.submit(run)

    # Demand

    async def _demand(self, exchange: Exchange, *, wake: bool) -> Admission:
        """Turn demand into a lease. What one client asks for at the same moment is one question."""
        assert exchange.identity is not None
        key = (exchange.name, exchange.identity.lease, wake)
        running = self._demands.get(key)
        joined = running is not None
        if running is None:
            running = asyncio.ensure_future(self._ask(exchange, exchange.identity.lease, wake))
            self._demands[key] = running
            running.add_done_callback(lambda _: self._demands.pop(key, None))
        admission = await asyncio.shield(running)
        if joined and admission.released:  # the one who asked began before a `down`; perhaps not we
            admission = await self._ask(exchange, exchange.identity.lease, wake)
        return admission

    async def _ask(self, exchange: Exchange, lease: str, wake: bool) -> Admission:
        ttl = exchange.gpu.idle_timeout
        if not exchange.view.snapshot.phase.serves:
            ttl += exchange.gpu.boot_estimate
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: self._store.demand(
                exchange.name,
                lease,
                ttl,
                reason=exchange.reason,
                actor=exchange.identity.name if exchange.identity else "",
                inflight=self._usage.inflight_lease,
                inflight_ttl=INFLIGHT_TTL,
                may_wake=wake,
                began_ago=time.monotonic() - exchange.began,
            ),
        )

    async def _hold(self, exchange: Exchange, decision: Decision) -> bool:
        """Turn the request into a lease and keep it until the GPU is ready (False: judge again) or
        there is no hope.

        Raises:
            ClientGone: nobody waits any more.
            StoreUnavailable: nobody can be told to wake it.
        """
        name, view = exchange.name, exchange.view
        if self._held >= self._config.proxy.max_held:
            await exchange.unready("too many requests are waiting")
            return True
        if not isinstance(exchange.receive, RequestBuffer):
            exchange.receive = RequestBuffer(exchange.request, exchange.receive, self._ahead)
        receive = exchange.receive
        deadline = exchange.began + self._config.proxy.hold
        every = min(RENEW_DEMAND, exchange.gpu.idle_timeout / 3)
        self._held += 1
        self._metrics.held.labels(name).inc()
        asked_at = float("-inf")
        try:
            while True:
                now = time.monotonic()
                if now - asked_at > every:
                    first, asked_at = asked_at < 0, now
                    if await self._renew(exchange, decision, first=first):
                        return True
                snapshot = view.snapshot
                if snapshot.phase.serves:
                    return False
                leaves = snapshot.phase is not Phase.DRAINING or snapshot.interrupted_at is not None
                if decision.action is Action.LEASE and leaves:
                    return False  # too late: how it is judged depends on what it is
                failure = snapshot.failure
                if snapshot.phase is Phase.FAILED and failure and failure.code in HOPELESS:
                    await exchange.unready(failure.headline)
                    return True
                if now >= deadline or self._closing:
                    why = f"not ready after {self._config.proxy.hold:.0f} s"
                    await exchange.unready("the proxy is restarting" if self._closing else why)
                    return True
                view.used = True
                await receive.wait(view, max(0.0, min(deadline - now, every)))
        finally:
            await receive.stop()
            self._held -= 1
            self._metrics.held.labels(name).dec()

    async def _renew(self, exchange: Exchange, decision: Decision, *, first: bool) -> bool:
        """Lease once more; whether the request is thereby answered (blocked, or given up)."""
        try:
            admission = await self._demand(exchange, wake=decision.wakes)
        except StoreUnavailable:
            if first:
                raise
            return False  # a failover, perhaps: what has been asked for still stands
        if admission.blocked_by or admission.released:
            await self._snapshots.refresh(exchange.name)
            if admission.blocked_by:
                await exchange.blocked()
            else:
                await exchange.unready("somebody has run `qwenctl down` meanwhile")
            return True
        if admission.phase is not exchange.view.snapshot.phase:
            await self._snapshots.refresh(exchange.name)
        return False


def _nothing() -> None:
    pass


def with_path(app: ASGIApp, path: str) -> ASGIApp:
    """The same application, asked for another path; the original one is kept in the scope."""

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        inner = {
            **scope,
            "path": path,
            "raw_path": path.encode(),
            # As it was sent: decoded, a %3F or %2F in it would become another address.
            "qwenctl.original_path": (scope.get("raw_path") or scope["path"].encode())
            .decode("latin-1")
            .partition("?")[0],
            "qwenctl.original_query": scope.get("query_string", b""),
        }
        await app(inner, receive, send)

    return asked
