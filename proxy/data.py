"""The data plane: every request that is not ours goes to the node, waits for it, or is told why not.

A plain ASGI callable. The path of a request, top to bottom: whose GPU it is for, who asks
(`auth`), what to do with it (`gate`), and then forwarding (`forward`, `websocket`), holding, the
waiting page, or a problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from qwenctl.config import Config, GpuConfig
from qwenctl.errors import StoreUnavailable
from qwenctl.lifecycle import Phase
from qwenctl.rules import Activity
from qwenctl.store import Admission, Store

from .activity import INFLIGHT_TTL, Activities
from .auth import Authenticator, Identity
from .forward import ClientGone, Forwarder, NotConnected, UpstreamDied
from .gate import Ruling, Verdict, judge
from .held import Held
from .metrics import Metrics
from .mirror import Mirror, View
from .problem import refuse_websocket, send_problem
from .request import ASGIApp, Networks, Receive, Request, Scope, Send
from .websocket import forward_websocket

__all__ = ["DataPlane"]

log = logging.getLogger("qwenctl.proxy")

RENEW_DEMAND = 20.0
"""How often a held request renews its lease, in seconds, or a third of the idle timeout."""

RECHECK = 3.0
"""How long a request that found no node waits for the controller to say what has happened."""


class DataPlane:
    """Forwards, holds or refuses."""

    def __init__(
        self,
        config: Config,
        store: Store,
        mirror: Mirror,
        activities: Activities,
        forwarder: Forwarder,
        authenticator: Authenticator,
        pages: Callable[[str, Scope, Receive, Send], Awaitable[None]],
        metrics: Metrics,
        trusted: Networks,
        owner: str,
    ) -> None:
        """``pages(name, scope, receive, send)`` renders one of our pages in place of the answer."""
        self._config = config
        self._store = store
        self._mirror = mirror
        self._activities = activities
        self._forward = forwarder
        self._authenticator = authenticator
        self._pages = pages
        self._metrics = metrics
        self._trusted = trusted
        self._owner = owner
        self._hosts = {host.lower(): name for name, gpu in config.gpu.items() for host in gpu.hosts}
        self._default = next(
            (name for name, gpu in config.gpu.items() if not gpu.hosts), next(iter(config.gpu), "")
        )
        self._demands: dict[tuple[str, str, bool], asyncio.Task[Admission]] = {}
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="demand")
        self._held = 0
        self._first_byte: dict[str, int] = {}

    def gpu_for(self, request: Request) -> str:
        """The GPU that this request is for, by its host name."""
        return self._hosts.get(request.hostname, self._default)

    async def stop(self) -> None:
        self._threads.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.from_scope(scope, self._trusted)
        name = self.gpu_for(request)
        if not name:
            await self._problem(scope, send, request, 503, "no_gpu", "no GPU is configured")
            return
        identity = self._authenticator.identify(request)
        deadline = time.monotonic() + self._config.proxy.hold
        send, state = _watched(send)
        while True:
            view = await self._mirror.view(name)
            ruling = judge(self._config.gpu[name], request, identity, view.snapshot)
            if ruling.verdict is Verdict.HOLD and not isinstance(receive, Held):
                receive = Held(request, receive)
            try:
                done = await self._carry_out(
                    ruling, name, view, request, identity, scope, receive, send, deadline
                )
            except ClientGone:
                self._metrics.requests.labels(name, "client_gone").inc()
                return
            except StoreUnavailable:
                await self._problem(
                    scope,
                    send,
                    request,
                    503,
                    "store_lost",
                    "the proxy cannot reach its store; nothing is started or stopped meanwhile",
                    retry_after=5,
                )
                return
            except NotConnected as error:
                if await self._moved_on(name, view, str(error)):
                    continue
                await self._problem(
                    scope,
                    send,
                    request,
                    502,
                    "node_unreachable",
                    "the node does not accept connections although it reported ready; "
                    "the GPU's state is being checked",
                    retry_after=5,
                )
                return
            except UpstreamDied as error:
                self._metrics.requests.labels(name, "upstream_died").inc()
                self._look(name, "upstream died")
                if state.started or error.started:
                    # The status is out; ending without the last byte tells the client that it is
                    # not whole.
                    log.info("%s: the node broke off an answer: %s", name, error)
                    return
                await self._after_death(scope, send, request, name)
                return
            if done:
                return

    async def _carry_out(
        self,
        ruling: Ruling,
        name: str,
        view: View,
        request: Request,
        identity: Identity | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        deadline: float,
    ) -> bool:
        """Do what the gate said; whether that was the end of it."""
        verdict = ruling.verdict
        if verdict is Verdict.FORWARD:
            await self._to_node(ruling, name, view, request, identity, scope, receive, send)
            return True
        self._metrics.requests.labels(name, verdict.value).inc()
        if verdict is Verdict.SIGN_IN:
            await self._sign_in(scope, receive, send, request)
            return True
        if verdict is Verdict.REFUSE:
            await self._problem(scope, send, request, 403, "refused", ruling.why)
            return True
        if verdict is Verdict.PAGE:
            await self._pages("waiting", _for_gpu(scope, name), receive, send)
            return True
        assert identity is not None
        if verdict is Verdict.UNREADY:
            if view.lost:
                raise StoreUnavailable(view.lost)
            await self._unready(scope, send, request, name, ruling.why)
            return True
        # A store that is only slow gets the demand; one that is lost says so now.
        if verdict is Verdict.HOLD:
            assert isinstance(receive, Held)
            return await self._hold(name, view, request, identity, scope, receive, send, deadline)
        admission = await self._demand(
            name, identity, wake=ruling.activity is Activity.WAKES, reason=_reason(request)
        )
        if admission.blocked_by:
            await self._blocked(scope, send, request, name)
            return True
        if verdict is Verdict.WAKE:
            await self._unready(scope, send, request, name, "it is being woken")
            return True
        await self._mirror.refresh(name)  # LEASE: it is ready again, or on its way down
        if view.snapshot.phase is Phase.DRAINING:
            await view.wait(1.0)  # the controller has seen the lease and decides
        return False

    # Forwarding

    async def _to_node(
        self,
        ruling: Ruling,
        name: str,
        view: View,
        request: Request,
        identity: Identity | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        gpu = self._config.gpu[name]
        address = gpu.address or view.snapshot.address
        if not address:
            raise NotConnected("the cloud has not said where the node is")
        base = f"http://{f'[{address}]' if ':' in address else address}:{gpu.port}"
        lease = identity.lease if identity else "request:unknown"
        use = self._activities.use(name, lease)
        self._metrics.requests.labels(name, "forward").inc()
        if scope["type"] == "websocket":
            touch = use.touch if ruling.activity is Activity.MESSAGES else (lambda: None)
            with use if ruling.counts else contextlib.nullcontext():
                await forward_websocket(self._forward, base, request, scope, receive, send, touch)
            return
        seq = view.snapshot.start_seq
        if self._first_byte.get(name) != seq:
            self._first_byte[name] = seq
            send = self._noting_first_byte(name, seq, send)
        if not ruling.counts:
            await self._forward(base, request, receive, send)
            return
        with use:
            await self._forward(base, request, receive, send)

    def _noting_first_byte(self, name: str, seq: int, send: Send) -> Send:
        """Have the first byte after a wake noted in the history, once in this process."""
        noted = False

        async def noting(message: dict[str, object]) -> None:
            nonlocal noted
            await send(message)
            if not noted:
                noted = True
                self._in_background(
                    lambda: self._store.note(
                        name, "first-byte", actor=self._owner, start_seq=str(seq)
                    )
                )

        return noting  # type: ignore[return-value]

    async def _moved_on(self, name: str, view: View, error: str) -> bool:
        """After a refused connection: whether the GPU turns out not to be ready after all."""
        log.info("%s: no connection to the node: %s", name, error)
        self._metrics.requests.labels(name, "not_connected").inc()
        seq = view.snapshot.start_seq
        self._look(name, "no connection to the node")
        until = time.monotonic() + RECHECK
        while (left := until - time.monotonic()) > 0:
            await self._mirror.refresh(name)
            now = view.snapshot
            if view.lost:
                return False
            if now.phase not in (Phase.READY, Phase.DRAINING) or now.start_seq != seq:
                return True
            await view.wait(left)
        return False

    async def _after_death(self, scope: Scope, send: Send, request: Request, name: str) -> None:
        await self._mirror.refresh(name)
        phase = self._mirror.peek(name).snapshot.phase
        # A person gets a page with a link, and not the waiting page, which opens this one by itself:
        # a WebUI that each visit breaks would be visited for ever.
        if phase.serves or request.is_navigation:
            await self._problem(
                scope,
                send,
                request,
                502,
                "upstream_died",
                "the node broke the connection before it answered; the GPU's state is being checked",
            )
        else:
            await self._unready(scope, send, request, name, f"the GPU is {phase.value}")

    def _look(self, name: str, cause: str) -> None:
        self._in_background(lambda: self._store.look(name, actor=self._owner, cause=cause))

    def _in_background(self, write: Callable[[], None]) -> None:
        def run() -> None:
            with contextlib.suppress(StoreUnavailable):
                write()

        with contextlib.suppress(RuntimeError):  # shutting down
            self._threads.submit(run)

    # Demand

    async def _demand(self, name: str, identity: Identity, *, wake: bool, reason: str) -> Admission:
        """Turn demand into a lease. What one client asks for at the same moment is one question."""
        key = (name, identity.lease, wake)
        running = self._demands.get(key)
        if running is None:
            running = asyncio.ensure_future(self._ask(name, identity, wake, reason))
            self._demands[key] = running
            running.add_done_callback(lambda _: self._demands.pop(key, None))
        return await asyncio.shield(running)

    async def _ask(self, name: str, identity: Identity, wake: bool, reason: str) -> Admission:
        gpu = self._config.gpu[name]
        ttl = gpu.idle_timeout
        if not self._mirror.peek(name).snapshot.phase.serves:
            ttl += gpu.boot_estimate
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: self._store.demand(
                name,
                identity.lease,
                ttl,
                reason=reason,
                actor=identity.name,
                inflight=self._activities.inflight_lease,
                inflight_ttl=INFLIGHT_TTL,
                may_wake=wake,
            ),
        )

    async def _hold(
        self,
        name: str,
        view: View,
        request: Request,
        identity: Identity,
        scope: Scope,
        receive: Held,
        send: Send,
        deadline: float,
    ) -> bool:
        """Wake the GPU and wait until it is ready (False: judge again) or there is no hope.

        Raises:
            ClientGone: nobody waits any more.
            StoreUnavailable: nobody can be told to wake it.
        """
        if self._held >= self._config.proxy.max_held:
            await self._unready(scope, send, request, name, "too many requests are waiting")
            return True
        gpu = self._config.gpu[name]
        self._held += 1
        self._metrics.held.labels(name).inc()
        try:
            asked_at = float("-inf")
            while True:
                now = time.monotonic()
                if now - asked_at > min(RENEW_DEMAND, gpu.idle_timeout / 3):
                    asked_at = now
                    admission = await self._demand(
                        name, identity, wake=True, reason=_reason(request)
                    )
                    if admission.blocked_by:
                        await self._blocked(scope, send, request, name)
                        return True
                    if admission.phase.serves:
                        await self._mirror.refresh(name)
                snapshot = view.snapshot
                if snapshot.phase.serves or snapshot.phase is Phase.DRAINING:
                    return False
                failure = snapshot.failure
                if snapshot.phase is Phase.FAILED and failure and failure.code in HOPELESS:
                    await self._unready(scope, send, request, name, failure.message)
                    return True
                if now >= deadline:
                    await self._unready(
                        scope,
                        send,
                        request,
                        name,
                        f"not ready after {self._config.proxy.hold:.0f} s",
                    )
                    return True
                await receive.wait(view, min(deadline - now, RENEW_DEMAND, gpu.idle_timeout / 3))
        finally:
            await receive.stop()
            self._held -= 1
            self._metrics.held.labels(name).dec()

    # Refusing

    async def _problem(
        self,
        scope: Scope,
        send: Send,
        request: Request,
        status: int,
        code: str,
        detail: str,
        retry_after: float | None = None,
    ) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, send, status, code, detail)
        elif request.is_navigation:
            problem = (status, code, detail, retry_after)
            await self._pages("problem", {**scope, "qwenctl.problem": problem}, _no_body, send)
        else:
            await send_problem(request, send, status, code, detail, retry_after=retry_after)

    async def _sign_in(self, scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        if request.is_navigation:
            await self._pages("sign-in", scope, receive, send)
        else:
            await self._problem(
                scope,
                send,
                request,
                401,
                "sign_in",
                "send an API key as 'Authorization: Bearer qk_…', or sign in with a browser",
            )

    async def _unready(
        self, scope: Scope, send: Send, request: Request, name: str, why: str
    ) -> None:
        snapshot = self._mirror.peek(name).snapshot
        failure = snapshot.failure if snapshot.phase is Phase.FAILED else None
        if snapshot.blocks:
            await self._blocked(scope, send, request, name)
            return
        detail = f"the GPU {name!r} is {snapshot.phase.value}: {why}"
        if failure:
            detail = f"the GPU {name!r} has failed to start: {failure.message}"
        await self._problem(
            scope,
            send,
            request,
            503,
            failure.code if failure else "not_ready",
            detail,
            retry_after=_retry_after(self._config.gpu[name], snapshot.phase),
        )

    async def _blocked(self, scope: Scope, send: Send, request: Request, name: str) -> None:
        await self._mirror.refresh(name)
        blocks = self._mirror.peek(name).snapshot.blocks
        block = blocks[0] if blocks else None
        until = block.expiry - self._mirror.peek(name).snapshot.now if block else 60.0
        because = f": {block.reason}" if block and block.reason else ""
        await self._problem(
            scope,
            send,
            request,
            503,
            "blocked",
            f"the GPU {name!r} is blocked by {block.name if block else 'somebody'}{because}",
            retry_after=None if until == float("inf") else until,
        )


HOPELESS = frozenset({"denied", "not_found"})
"""Failures that no waiting mends: a person has to act."""


async def _no_body() -> dict[str, object]:
    return {"type": "http.request", "body": b"", "more_body": False}


class _Started:
    started = False


def _watched(send: Send) -> tuple[Send, _Started]:
    state = _Started()

    async def watched(message: dict[str, object]) -> None:
        state.started = True
        await send(message)

    return watched, state  # type: ignore[return-value]


def _for_gpu(scope: Scope, name: str) -> Scope:
    return {**scope, "qwenctl.gpu": name}


def _reason(request: Request) -> str:
    return f"{request.method} {request.path[:120]}"


def _retry_after(gpu: GpuConfig, phase: Phase) -> float:
    if phase.waking:
        return max(2.0, min(15.0, gpu.boot_estimate / 4))
    return min(60.0, gpu.boot_estimate)


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
