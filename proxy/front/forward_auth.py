"""``/_qwenctl/gate``: the admission decision for another data plane in front of the node.

For nginx (``auth_request``), Caddy and Traefik (forward auth). Such a data plane tells us of a
request when it begins and not when it ends, so that it counts as use when it begins only: an answer
that takes longer than the idle timeout needs `service.activity`, by which the node reports it.
"""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

from qwenctl.config.deployment import Config, UnknownTier
from qwenctl.errors import StoreUnavailable
from qwenctl.store.store import Store

from ..auth.authenticator import Authenticator
from ..data.admission import Action, decide
from ..data.routing import gpu_of
from ..data.snapshot_cache import SnapshotCache
from ..data.usage import UsageTracker
from ..http.problem import send_problem
from ..http.request import Networks, Receive, Request, Scope, Send

__all__ = ["ForwardAuth"]


class ForwardAuth:
    """204: forward it, to the node in ``X-Qwenctl-Node``; 401: sign in first; 403: not now.

    The original request's method and address come in one pair of headers, the configured one
    (`proxy.gate_headers`), and are believed from this machine and from trusted proxies only: a
    client could send the other pair.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        snapshots: SnapshotCache,
        usage: UsageTracker,
        authenticator: Authenticator,
        trusted: Networks,
    ) -> None:
        self._config = config
        self._store = store
        self._snapshots = snapshots
        self._usage = usage
        self._authenticator = authenticator
        self._trusted = trusted
        self._prefix = config.proxy.gate_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Decide about one request of the other data plane."""
        asked = Request.of(scope, self._trusted)
        if not asked.trusted_peer and not asked.from_loopback:
            await send_problem(
                asked, send, 403, "not_trusted", "name this proxy in proxy.trusted_proxies"
            )
            return
        try:
            # Not by ?gpu=: Caddy sends the visitor's own query here too.
            name = gpu_of(self._config, asked)
        except UnknownTier as error:
            await send_problem(asked, send, 400, "unknown_tier", str(error))
            return
        if not name:
            await send_problem(asked, send, 503, "no_gpu", "no GPU is configured")
            return
        original = self._original(asked, scope)
        identity = self._authenticator.identify(original)
        gpu, view = self._config.gpu[name], await self._snapshots.view(name)
        decision = decide(gpu, original, identity, view.snapshot)
        if decision.action is Action.LEASE and identity:
            try:
                await asyncio.to_thread(
                    self._store.demand,
                    name,
                    identity.lease,
                    gpu.idle_timeout,
                    reason=f"{original.method} {original.path[:120]}",
                    actor=identity.name,
                    may_wake=decision.wakes,
                )
                await self._snapshots.refresh(name)
            except StoreUnavailable:
                pass  # it is judged by what is known
            decision = decide(gpu, original, identity, view.snapshot)
        finishes = False
        if decision.action is Action.FINISH and identity:
            finishes = await self._usage.begin_unseen(name, identity.lease)
            if not finishes:  # it is too late
                await self._snapshots.refresh(name)
        if decision.action is Action.SIGN_IN:
            await send_problem(asked, send, 401, "sign_in", "sign in first")
        elif decision.action is Action.FORWARD or finishes:
            if decision.counts and identity:
                self._usage.touch(name, identity.lease)
            node = f"{gpu.address or view.snapshot.address}:{gpu.port}".encode()
            await send(
                {
                    "type": "http.response.start",
                    "status": 204,
                    "headers": [(b"x-qwenctl-node", node)],
                }
            )
            await send({"type": "http.response.body", "body": b""})
        else:
            detail = f"the GPU is {view.snapshot.phase.value}"
            await send_problem(asked, send, 403, "not_ready", decision.why or detail)

    def _original(self, asked: Request, scope: Scope) -> Request:
        """The request that the other data plane asks about."""
        uri = asked.headers.get(f"{self._prefix}-uri", "/")
        path, _, query = uri.partition("?")
        return Request.from_scope(
            {
                **scope,
                "method": asked.headers.get(f"{self._prefix}-method", "GET"),
                "path": unquote(path),
                "raw_path": path.encode(),
                "query_string": query.encode(),
            },
            self._trusted,
        )
