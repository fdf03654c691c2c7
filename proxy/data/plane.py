"""The data plane: every request that is not ours goes to the node, waits for it, or is told why not.

A plain ASGI callable. The path of a request, top to bottom: whose GPU it is for, who asks
(`auth`), what to do with it (`admission`), and then forwarding (`forward`, `websocket`), holding, the
waiting page, or a problem (`exchange`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from qwenctl.config.deployment import UnknownTier
from qwenctl.core.address import NodeAddress
from qwenctl.core.events import EventKind
from qwenctl.core.identity import USE, Identity
from qwenctl.core.observer import Observer
from qwenctl.core.phase import Phase
from qwenctl.core.rules import Activity
from qwenctl.core.words import ONE_CONFIGURATION, other_port
from qwenctl.errors import StoreUnavailable

from ..http.cors import Cors, is_preflight, refuse_preflight
from ..http.cut import AnswerCut
from ..http.problem import send_problem
from ..http.request import Receive, Request, Scope, Send
from .admission import Action, Decision
from .exchange import Exchange, Pages
from .forward import BadAnswer, ClientGone, Forwarder, NotConnected, UpstreamDied
from .link import Link
from .links import Links
from .listening import Listener, ask_plainly, listener_of
from .model_finder import Models, TooMuchAhead
from .model_list import FETCH_SECONDS, MAX_BYTES, PATH, ModelLists, asked_model
from .progress import Progress
from .request_buffer import ReadAheadBudget, RequestBuffer
from .response_observer import FirstByte, ObservedSend, ObserverFactory
from .routing import gpu_of
from .services import Services
from .waiting import HeldRequests
from .websocket import ABNORMAL, forward_websocket

log = logging.getLogger("qwenctl.proxy")

RECHECK = 3.0
"""How long a request that found no node waits for the controller to say what has happened."""

LOOK_INTERVAL = 1.0
"""The controller is asked to look at the cloud once in so many seconds, however many requests fail."""

TOO_MUCH_AHEAD = (
    "too many large requests are waiting; name the tier in X-Qwenctl-Tier, or the model before the "
    "messages"
)

UNREACHABLE = (
    "the node does not accept connections although it reported ready; the GPU's state is being "
    "checked"
)

_PREFLIGHT = Decision(Action.FORWARD)

STORE_LOST = "the proxy cannot reach its store; nothing is started or stopped meanwhile"


class DataPlane:
    """Forwards, holds or refuses."""

    def __init__(
        self,
        services: Services,
        forwarder: Forwarder,
        pages: Pages,
        response_observers: Sequence[ObserverFactory] = (),
    ) -> None:
        self._config = config = services.config
        self._store = services.store
        self._snapshots = services.snapshots
        self._usage = services.usage
        self._links = Links(services.usage, forwarder)
        self._admit = services.admit
        self._forward = forwarder
        self._authenticators = services.authenticators
        self._pages = pages
        self._metrics = services.metrics
        self._observer: Observer = services.metrics
        self._trusted = services.trusted
        self._owner = services.owner
        self._cors = Cors(config.proxy.cors_origins)
        budget = ReadAheadBudget()
        self._models = Models(config, budget)
        self._model_lists = ModelLists(config, services.store)
        self._progress = Progress(config, services.store, services.snapshots)
        self._waiting = HeldRequests(
            config,
            services.admit,
            services.snapshots,
            services.metrics,
            budget,
            self._progress,
        )
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="note")
        first_byte: ObserverFactory = FirstByte(self._note_first_byte)
        self._response_observers = (first_byte, *response_observers)
        self._looked_at: dict[str, float] = {}

    def close(self) -> None:
        """Answer all held requests, because the proxy goes down."""
        self._waiting.close()

    def end_quiet(self, seconds: float) -> bool:
        """End forwarded requests without a byte in so many seconds; return whether others are open."""
        return self._links.end_quiet(seconds)

    async def stop(self) -> None:
        await self._model_lists.stop()
        self._threads.shutdown(wait=False)
        self._progress.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.of(scope, self._trusted)
        names = self._config.gpus_at(request.hostname)
        if not names:
            await send_problem(request, send, 503, "no_gpu", "no GPU is configured")
            return
        name = names[0]
        exchange = Exchange(
            request,
            self._authenticators.identify(request),
            name,
            self._config.gpu[name],
            self._snapshots.peek(name),
            scope,
            receive,
            send,
            self._pages,
        )
        try:
            if scope["type"] == "http" and is_preflight(request):
                await self._preflight(exchange)
                return
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
        except BadAnswer as error:
            self._metrics.count(exchange.name, "bad_answer")
            await exchange.problem(502, "bad_answer", str(error))
        except UpstreamDied as error:
            await self._after_death(exchange, error)
        finally:
            if isinstance(exchange.receive, RequestBuffer):
                exchange.receive.close()

    async def _preflight(self, exchange: Exchange) -> None:
        """Answer a preflight, which has no credentials: by the settings, or have the node do so."""
        if self._cors.configured:
            await self._cors.answer(exchange.request, exchange.send)
            return
        # Whoever it is, it neither wakes the GPU nor keeps it on.
        exchange.identity = Identity(address=exchange.request.client, scopes=frozenset({USE}))
        decision = await self._admit.decide(exchange)
        if decision.action is Action.FORWARD and await self._to_node(exchange, _PREFLIGHT):
            return
        if decision.action is Action.AMBIGUOUS:
            await exchange.problem(400, "ambiguous_path", decision.why)
            return
        phase = exchange.view.snapshot.phase.value
        why = f"none is set, and the GPU {exchange.name!r}, which would answer itself, is {phase}"
        await refuse_preflight(exchange.request, exchange.send, why)

    async def _choose(self, exchange: Exchange, names: Sequence[str]) -> None:
        """Make it an exchange with the one of these GPUs that it is for."""
        model = asked_model(exchange.request) or ""
        if self._models.matters(names, exchange.request):
            model, exchange.receive = await self._models.read(exchange.request, exchange.receive)
        exchange.name = gpu_of(self._config, exchange.request, model)
        exchange.gpu, exchange.view = (
            self._config.gpu[exchange.name],
            self._snapshots.peek(exchange.name),
        )

    async def _once(self, exchange: Exchange) -> bool:
        """Admit the request and act on the decision; return False to admit it again."""
        decision = await self._admit.decide(exchange)
        match decision.action:
            case Action.FORWARD:
                return await self._to_node(exchange, decision)
            case Action.FINISH:
                return await self._finish(exchange, decision)
            case Action.SIGN_IN:
                await exchange.sign_in()
            case Action.REFUSE:
                await exchange.problem(403, "refused", decision.why)
            case Action.CROSS_SITE:
                await exchange.problem(403, "cross_site", decision.why)
            case Action.AMBIGUOUS:
                await exchange.problem(400, "ambiguous_path", decision.why)
            case Action.PAGE:
                await exchange.waiting_page()
            case Action.UNREADY:
                if await self._model_lists.answer(exchange):
                    return True
                if exchange.view.lost:
                    raise StoreUnavailable(exchange.view.lost)
                await exchange.unready(decision.why, wakes=False)
            case Action.WAKE:
                admission = await self._admit.demand(exchange, wake=True)
                if admission.blocked_by:
                    await self._snapshots.refresh(exchange.name)
                    await exchange.blocked()
                else:
                    await exchange.unready("it is being woken")
            case Action.LEASE | Action.HOLD:
                return await self._waiting.hold(exchange, decision)
        return True

    # Forwarding

    async def _to_node(self, exchange: Exchange, decision: Decision) -> bool:
        """Forward; return False if the GPU turns out not to be ready, to be admitted again."""
        name, address = exchange.name, exchange.gpu.address or exchange.view.snapshot.address
        base = NodeAddress(address, exchange.gpu.port).url
        try:
            if not address:
                raise NotConnected("the cloud has not said where the node is")
            with self._links.open(exchange, counts=decision.counts) as link:
                if decision.counts or exchange.scope["type"] == "websocket":
                    await self._counted(exchange, decision, base, link)
                else:
                    await self._answer(exchange, base, link)
        except NotConnected as error:
            log.info("%s: no connection to the node: %s", name, error)
            self._metrics.count(name, "not_connected")
            if await self._moved_on(exchange):
                return False
            differs = other_port(exchange.view.snapshot, exchange.gpu.port)
            detail = f"{differs}: {ONE_CONFIGURATION}" if differs else UNREACHABLE
            await exchange.problem(502, "node_unreachable", detail, 5)
        return True

    async def _finish(self, exchange: Exchange, decision: Decision) -> bool:
        """Forward a request of work already running on a draining instance.

        Return False if the stop has begun.
        """
        async with self._admit.finishing(exchange) as in_time:
            return in_time and await self._to_node(exchange, decision)

    async def _counted(self, exchange: Exchange, decision: Decision, base: str, link: Link) -> None:
        """Forward a request that counts as use from its first byte to its last, or a WebSocket.

        A WebSocket whose messages count is used at each of them. `_finish` counts its request
        itself, before it is forwarded.
        """
        use = self._usage.use(exchange.name, exchange.lease)
        use.link = link
        counts = decision.counts and decision.action is not Action.FINISH
        with use if counts else contextlib.nullcontext():
            if exchange.scope["type"] == "websocket":
                listener = self._listener(exchange)
                touch = use.touch if decision.activity is Activity.MESSAGES else _nothing
                await forward_websocket(
                    self._forward,
                    base,
                    exchange.request,
                    exchange.scope,
                    exchange.receive,
                    exchange.send,
                    touch,
                    link,
                    listener.message if listener else None,
                )
            else:
                await self._answer(exchange, base, link)

    async def _answer(self, exchange: Exchange, base: str, link: Link) -> None:
        """Forward an HTTP request; observers see its answer pass."""
        began = time.monotonic()
        plain = await self._model_lists.send_for(exchange)
        made = [factory(exchange) for factory in self._response_observers]
        if listener := self._listener(exchange):
            ask_plainly(exchange)
            made.append(listener)
        if observers := [observer for observer in made if observer is not None]:
            with ObservedSend(plain, observers) as send:
                status = await self._forward(base, exchange.request, exchange.receive, send, link)
        else:
            status = await self._forward(base, exchange.request, exchange.receive, plain, link)
        if status < 400:
            self._model_lists.ask_node(
                exchange, lambda: self._forward.fetch(base, PATH, FETCH_SECONDS, MAX_BYTES)
            )
        self._observer.forwarded(exchange.name, status, time.monotonic() - began)

    def _listener(self, exchange: Exchange) -> Listener | None:
        return listener_of(exchange, lambda: self._usage.flows(exchange.name, exchange.lease))

    def _note_first_byte(self, gpu: str, seq: int) -> None:
        fields = {"actor": self._owner, "start_seq": str(seq)}
        self._in_background(lambda: self._store.note(gpu, EventKind.FIRST_BYTE, **fields))

    async def _moved_on(self, exchange: Exchange) -> bool:
        """After a refused connection: whether the GPU turns out not to be ready after all.

        As long as the cloud says that the instance is gone, and it is not sure yet, the request
        waits as if it were held.
        """
        view = exchange.view
        seq = view.snapshot.start_seq
        self._look(exchange.name, "no connection to the node")
        until = time.monotonic() + RECHECK
        await self._snapshots.refresh(exchange.name)
        longest = max(until, exchange.began + self._config.proxy.hold)
        while not view.lost:
            left = (longest if view.snapshot.observed.gone else until) - time.monotonic()
            if left <= 0:
                break
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
            if exchange.scope["type"] == "websocket":
                await exchange.send(
                    {"type": "websocket.close", "code": ABNORMAL, "reason": str(error)}
                )
                return
            raise AnswerCut(str(error))
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


def _nothing() -> None:
    pass
