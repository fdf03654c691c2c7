"""Let pages of other sites use the GPU from a browser (CORS).

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

from collections.abc import Sequence

from .problem import send_problem
from .request import ASGIApp, Message, Networks, Receive, Request, Scope, Send

PREFLIGHT_SECONDS = 600
"""How long browsers may remember the answer to a preflight, in seconds."""

EXPOSED = b"Retry-After, X-Request-Id, X-Qwenctl-Models"
"""Headers of answers that scripts may read, beside the few that they always may."""

ANY = "*"
"""The origin of everybody: without cookies, and no exemption from the cross-site check."""

_OURS = frozenset({b"access-control-allow-origin", b"access-control-allow-credentials"})


def is_preflight(request: Request) -> bool:
    """Return whether a browser asks if a page of another site may send a request.

    Browsers send it without credentials and without a body.
    """
    headers = request.headers
    return (
        request.method == "OPTIONS"
        and "origin" in headers
        and "access-control-request-method" in headers
        and "transfer-encoding" not in headers
        and headers.get("content-length", "0") == "0"
    )


class Cors:
    """The sites whose pages may use the GPU, and what their browsers are told."""

    def __init__(self, origins: Sequence[str]) -> None:
        """``origins`` as in `proxy.cors_origins`."""
        self._origins = frozenset(origins)

    @property
    def configured(self) -> bool:
        return bool(self._origins)

    def note(self, request: Request) -> None:
        """Note on a request whether a configured site's page sent it."""
        origin = request.headers.get("origin", "")
        request.allowed_origin = origin != ANY and origin.lower() in self._origins

    def headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        """Return the headers by which the page that sent a request may read its answer."""
        if request.allowed_origin:
            origin = request.headers["origin"].encode("latin-1")
            allowed = [
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-credentials", b"true"),
            ]
        elif ANY in self._origins and "origin" in request.headers:
            allowed = [(b"access-control-allow-origin", b"*")]
        else:
            return []
        return [*allowed, (b"access-control-expose-headers", EXPOSED)]

    async def answer(self, request: Request, send: Send) -> None:
        """Answer a preflight; `CorsHeaders` adds the origin."""
        if not self.headers(request):
            origin = request.headers["origin"][:200]
            await refuse_preflight(request, send, f"the site {origin!r} is not among them")
            return
        asked = request.headers
        headers = [
            (b"access-control-allow-methods", asked["access-control-request-method"]),
            (b"access-control-allow-headers", asked.get("access-control-request-headers", "")),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS)),
            (b"vary", "Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        if asked.get("access-control-request-private-network") == "true":
            # A proxy on this machine or in this network, https://wicg.github.io/private-network-access/
            headers.append((b"access-control-allow-private-network", "true"))
        fields = [(name, value.encode("latin-1")) for name, value in headers if value]
        await send({"type": "http.response.start", "status": 204, "headers": fields})
        await send({"type": "http.response.body", "body": b""})


async def refuse_preflight(request: Request, send: Send, why: str) -> None:
    """Refuse a preflight: pages of other sites use the GPU by setting only."""
    detail = f"pages of other sites may use the GPU if proxy.cors_origins names them: {why}"
    await send_problem(request, send, 403, "cross_site", detail)


class CorsHeaders:
    """Adds to all answers who may read them, in place of what the node says."""

    def __init__(self, app: ASGIApp, cors: Cors, trusted: Networks) -> None:
        self._app, self._cors, self._trusted = app, cors, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.of(scope, self._trusted)
        self._cors.note(request)
        headers = self._cors.headers(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() not in _OURS]
                message = {**message, "headers": [*kept, *headers, (b"vary", b"Origin")]}
            await send(message)

        await self._app(scope, receive, send if scope["type"] == "websocket" else send_with_headers)
