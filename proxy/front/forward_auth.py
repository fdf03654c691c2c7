"""Answer ``/_qwenctl/gate``: admit requests for another data plane in front of the node.

For nginx (``auth_request``), Caddy and Traefik (forward auth). Such a data plane announces the
beginning of a request and not its end, so a request counts as use when it begins only. An answer
that takes longer than the idle timeout needs `service.activity`, by which the node reports it.
"""

from __future__ import annotations

from urllib.parse import unquote

from qwenctl.config.deployment import UnknownTier
from qwenctl.core.address import NodeAddress
from qwenctl.core.identity import USE, Identity

from ..data.admission import Action
from ..data.admit import Inbound
from ..data.routing import gpu_of
from ..data.services import Services
from ..http.cors import Cors, is_preflight, refuse_preflight
from ..http.problem import send_problem
from ..http.request import Message, Receive, Request, Scope, Send

_CODES = {Action.AMBIGUOUS: "ambiguous_path", Action.CROSS_SITE: "cross_site"}

_CARRIED = frozenset({401, 403})
"""The refusals that nginx knows (ngx_http_auth_request_module); it answers 500 to any other."""


class ForwardAuth:
    """Answers 204 to forward to the node in ``X-Qwenctl-Node``, 401 to sign in, 403 to refuse.

    The status that a 403 stands for is in ``X-Qwenctl-Status``, where it is another.

    The original request's method and address come in the configured pair of headers
    (`proxy.gate_headers`), because a client could send another pair. They are believed from this
    machine and from trusted proxies only.
    """

    def __init__(self, services: Services) -> None:
        self._config = services.config
        self._snapshots = services.snapshots
        self._usage = services.usage
        self._admit = services.admit
        self._authenticators = services.authenticators
        self._trusted = services.trusted
        self._cors = Cors(services.config.proxy.cors_origins)
        self._prefix = self._config.proxy.gate_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Admit a request of the other data plane."""
        send = self.carried(scope, send)
        asked = Request.of(scope, self._trusted)
        if not asked.trusted_peer and not asked.from_loopback:
            await send_problem(
                asked, send, 403, "not_trusted", "name this proxy in proxy.trusted_proxies"
            )
            return
        if f"{self._prefix}-uri" not in asked.headers and not asked.peer_is_loopback:
            # A visitor's own request, which a proxy in front has passed on: the node's address is
            # not for visitors.
            await send_problem(
                asked, send, 404, "not_for_visitors", "there is nothing here for visitors"
            )
            return
        if "," in asked.headers.get(f"{self._prefix}-method", ""):
            detail = "the method is told more than once; the proxy in front must replace a client's"
            await send_problem(asked, send, 403, "bad_target", detail)
            return
        try:
            # Not by ?gpu=: Caddy sends the visitor's query here too.
            name = gpu_of(self._config, asked)
        except UnknownTier as error:
            await send_problem(asked, send, 400, "unknown_tier", str(error))
            return
        if not name:
            await send_problem(asked, send, 503, "no_gpu", "no GPU is configured")
            return
        original = self._original(asked, scope)
        self._cors.note(original)
        if is_preflight(original):
            await self._preflight(asked, original, name, send)
            return
        identity = self._authenticators.identify(original)
        inbound = Inbound(
            original, identity, name, self._config.gpu[name], self._snapshots.peek(name)
        )
        decision = await self._admit.decide_at_once(inbound)
        if decision.action is Action.SIGN_IN:
            await send_problem(asked, send, 401, "sign_in", "sign in first")
        elif decision.action is Action.FORWARD:
            if decision.counts:
                self._usage.touch(name, inbound.lease)
            await self._allow(inbound, send)
        else:
            code = _CODES.get(decision.action, "not_ready")
            detail = f"the GPU is {inbound.view.snapshot.phase.value}"
            await send_problem(asked, send, 403, code, decision.why or detail)

    def carried(self, scope: Scope, send: Send) -> Send:
        """Return a ``send`` that makes each refusal one that the other data plane can carry.

        ``X-Qwenctl-Status`` then tells the status meant. The visitor gets it from our own data
        plane, to which the server in front hands the request on.
        """
        if f"{self._prefix}-uri" not in Request.of(scope, self._trusted).headers:
            return send

        async def send_carried(message: Message) -> None:
            status = message.get("status", 0)
            if status >= 300 and status not in _CARRIED:
                meant = (b"x-qwenctl-status", str(status).encode())
                message = {**message, "headers": [*message["headers"], meant], "status": 403}
            await send(message)

        return send_carried

    async def _preflight(self, asked: Request, original: Request, name: str, send: Send) -> None:
        """Have the node answer a preflight, or this proxy: if it is asleep, or sites are set."""
        inbound = Inbound(
            original,
            Identity(address=original.client, scopes=frozenset({USE})),
            name,
            self._config.gpu[name],
            self._snapshots.peek(name),
        )
        decision = await self._admit.decide(inbound)
        if decision.action is Action.FORWARD and not self._cors.configured:
            await self._allow(inbound, send)
        else:
            await refuse_preflight(asked, send, "this proxy answers it, and not the node")

    async def _allow(self, inbound: Inbound, send: Send) -> None:
        """Answer 204 with the node's address."""
        address = inbound.gpu.address or inbound.view.snapshot.address
        node = NodeAddress(address, inbound.gpu.port).netloc
        headers = [(b"x-qwenctl-node", node.encode())]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _original(self, asked: Request, scope: Scope) -> Request:
        """Return the request that the other data plane asks about."""
        uri = asked.headers.get(f"{self._prefix}-uri", "/")
        path, _, query = uri.partition("?")
        method = asked.headers.get(f"{self._prefix}-method", "GET")
        # The handshake's Upgrade is not passed on (RFC 9110 §7.6.1), its key is (RFC 6455 §4.1).
        websocket = method == "GET" and "sec-websocket-key" in asked.headers
        return Request.from_scope(
            {
                **scope,
                "type": "websocket" if websocket else "http",
                "method": method,
                "path": unquote(path),
                "raw_path": path.encode(),
                "query_string": query.encode(),
            },
            self._trusted,
        )
