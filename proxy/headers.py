"""Which headers pass through a proxy, and which it adds (RFC 9110 §7.6, RFC 9112)."""

from __future__ import annotations

from collections.abc import Iterable

from .auth import COOKIE, api_key
from .request import Request

__all__ = ["HOP_BY_HOP", "request_headers", "response_headers"]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that speak of one connection only."""

_FORWARDED = frozenset(
    {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded"}
)
_WEBSOCKET = frozenset(
    {
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
    }
)


def _named(connection: str) -> frozenset[bytes]:
    """The headers that a Connection header declares hop-by-hop."""
    return frozenset(
        part.strip().lower().encode() for part in connection.split(",") if part.strip()
    )


def request_headers(request: Request) -> list[tuple[str, str]]:
    """What the node gets: the client's headers without hop-by-hop ones and without our own
    credentials, and who the client is."""
    drop = HOP_BY_HOP | _FORWARDED
    if connection := request.headers.get("connection"):
        drop |= _named(connection)
    if request.method == "WEBSOCKET":
        drop |= _WEBSOCKET
    ours = api_key(request.headers)
    out: list[tuple[str, str]] = []
    for name, value in request.raw_headers:
        key = name.lower()
        if key in drop:
            continue
        text = value.decode("latin-1")
        if key == b"cookie":
            text = "; ".join(
                part for part in text.split("; ") if not part.lstrip().startswith(f"{COOKIE}=")
            )
            if not text:
                continue
        elif ours and key in (b"authorization", b"x-api-key") and ours in text:
            continue
        out.append((name.decode("latin-1"), text))
    before = request.headers.get("x-forwarded-for") if request.trusted_peer else None
    out.append(("X-Forwarded-For", f"{before}, {request.peer}" if before else request.peer))
    out.append(("X-Forwarded-Proto", request.proto))
    if host := request.host:
        out.append(("X-Forwarded-Host", host))
    return out


def response_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What the client gets: the node's headers without hop-by-hop ones."""
    headers = [(name.lower(), value) for name, value in raw]
    drop = HOP_BY_HOP
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            drop |= _named(value.decode("latin-1"))
    return [(name, value) for name, value in headers if name not in drop]
