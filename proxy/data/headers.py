"""Select the headers that pass through, and add the proxy's own (RFC 9110 §7.6, RFC 9112)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from multidict import CIMultiDict

from qwenctl.core.identity import KEY_PREFIX

from ..http.cookies import OUR_COOKIES
from ..http.request import Request

TIER_HEADER = "x-qwenctl-tier"
"""The header by which a client chooses among several GPUs (`routing`)."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
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
"""Headers that are valid for a single connection (RFC 9110 §7.6.1)."""

_CREDENTIALS = (b"authorization", b"x-api-key")
_OUR_KEY = re.compile(rf"(?:^|[\s,]){KEY_PREFIX}")

# The proxy answers "100 Continue" itself when the node reads the body. A node that does not know
# Expect would never answer it.
_DROPPED = HOP_BY_HOP | {b"expect", TIER_HEADER.encode()}

_SPOKEN_FOR = (b"x-forwarded-", b"x_forwarded_", b"forwarded", b"x-real-ip", b"x_real_ip")
"""Prefixes of headers that identify the client: set by the proxy, unless a trusted proxy has set
them before. Many servers read an underscore as a hyphen; no proxy sets such a name, so that a
trusted one has it from its client."""

_OURS_TO_SAY = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
_END_TO_END = frozenset(
    {b"host", b"content-length", b"content-type", b"cookie", b"authorization", b"set-cookie"}
)
"""Headers that a Connection header cannot take away."""

_WEBSOCKET = frozenset(
    {
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
    }
)


def _named(connection: str) -> frozenset[bytes]:
    """Return the headers that a Connection header declares hop-by-hop."""
    named = {part.strip().lower().encode("latin-1", "replace") for part in connection.split(",")}
    return frozenset(named) - _END_TO_END


def _text(value: bytes) -> str:
    """Decode a header's value so that the client library keeps its bytes, UTF-8 or not."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("utf-8", "surrogateescape")


def request_headers(request: Request) -> CIMultiDict[str]:
    """Return the headers for the node.

    Hop-by-hop headers and the proxy's own (credentials above all) are left out; headers that
    identify the client are added.
    """
    drop = _DROPPED
    if connection := request.headers.get("connection"):
        drop |= _named(connection)
    if request.method == "WEBSOCKET":
        drop |= _WEBSOCKET
    if "forwarded" in request.headers and not request.forwarded.by_forwarded:
        drop |= {b"forwarded"}  # a client's, through a proxy that speaks otherwise
    out: CIMultiDict[str] = CIMultiDict()
    for name, value in request.raw_headers:
        key = name.lower()
        if key in drop:
            continue
        if key.startswith(_SPOKEN_FOR) and (
            not request.trusted_peer or key in _OURS_TO_SAY or b"_" in key
        ):
            continue
        text = _text(value)
        if key == b"cookie" and "qwenctl_" in text:
            parts = text.split(";")  # "; " is usual, ";" is sent too
            kept = (p for p in parts if p.partition("=")[0].strip() not in OUR_COOKIES)
            text = ";".join(kept).strip()
            if not text:
                continue
        elif key in _CREDENTIALS and _OUR_KEY.search(text):
            continue
        out.add(name.decode("latin-1"), text)
    before = request.forwarded.path
    out.add("X-Forwarded-For", f"{before}, {request.peer}" if before else request.peer)
    out.add("X-Forwarded-Proto", request.proto)
    if host := request.host:
        out.add("X-Forwarded-Host", host)
    return out


_VISIBLE = bytes(x if x == 9 or (x >= 32 and x != 127) else 32 for x in range(256))
"""Control characters in a field's value become spaces (RFC 9110 §5.5)."""


def response_headers(
    raw: Iterable[tuple[bytes, bytes]], status: int = 200
) -> list[tuple[bytes, bytes]]:
    """Return the node's headers for the client, without hop-by-hop headers."""
    headers = [(name.lower(), value) for name, value in raw]
    drop = HOP_BY_HOP
    if status in (204, 304):  # may give the length of a body that is not sent
        drop |= {b"content-length"}
    for name, value in headers:
        if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            drop |= _named(value.decode("latin-1"))
    return [(name, value.translate(_VISIBLE)) for name, value in headers if name not in drop]
