"""Requests, read from ASGI scopes."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from qwenctl.lib.settings_types import is_loopback

from .forwarded import Forwarded, passed_on, plain_address, read, within
from .forwarded import Networks as Networks

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

GONE = "qwenctl.gone"
"""The key of a scope's function that returns whether the client is gone, without reading."""


def networks(texts: Sequence[str]) -> Networks:
    """Parse addresses and networks in CIDR notation.

    Raises:
        ValueError: a text is neither.
    """
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


@dataclass(slots=True)
class Request:
    """An HTTP request or WebSocket handshake. Header names are lower case."""

    method: str
    path: str
    target: str
    """The path and query as they were sent, percent-encoded."""
    headers: dict[str, str]
    raw_headers: list[tuple[bytes, bytes]]
    peer: str
    scheme: str
    trusted_peer: bool
    trusted: Networks = ()
    _forwarded: Forwarded | None = field(default=None, repr=False)
    allowed_origin: bool = False
    """Whether a page of a site in `proxy.cors_origins` sent it; see `cors`."""

    @classmethod
    def of(cls, scope: Scope, trusted: Networks) -> Request:
        """Return the request of a scope, which keeps it after the first call."""
        known: Request | None = scope.get("qwenctl.request")
        if known is None:
            known = scope["qwenctl.request"] = cls.from_scope(scope, trusted)
        return known

    @classmethod
    def from_scope(cls, scope: Scope, trusted: Networks) -> Request:
        """Read a request from a scope."""
        raw = list(scope["headers"])
        headers: dict[str, str] = {}
        split = False
        for name, value in raw:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            if key not in headers:
                headers[key] = text
            elif key != "cookie":
                headers[key] += f", {text}"
            else:  # an HTTP/2 front has split it (RFC 9113 §8.2.3)
                headers[key] += f"; {text}"
                split = True
        if split:
            raw = _joined(raw, headers["cookie"])
        path = scope.get("raw_path") or scope["path"].encode()
        target = path.decode("latin-1").partition("?")[0]
        if query := scope.get("query_string"):
            target += "?" + query.decode("latin-1")
        client = scope.get("client")
        peer = plain_address(client[0]) or client[0] if client else ""
        websocket = scope["type"] == "websocket"
        return cls(
            method="WEBSOCKET" if websocket else scope["method"],
            path=scope["path"],
            target=target,
            headers=headers,
            raw_headers=raw,
            peer=peer,
            scheme=str(scope.get("scheme", "http")),
            trusted_peer=bool(trusted) and within(peer, trusted),
            trusted=trusted,
        )

    @property
    def sent_path(self) -> str:
        """The path as it was sent, percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def forwarded(self) -> Forwarded:
        """What trusted proxies in front say; of any other peer, its address alone."""
        if self._forwarded is None:
            said = self.trusted_peer and read(self.headers, self.peer, self.trusted)
            self._forwarded = said or _alone(self.peer)
        return self._forwarded

    @property
    def client(self) -> str:
        """The client's address: the peer's, or that given by a trusted proxy in front."""
        return self.forwarded.client

    @property
    def from_loopback(self) -> bool:
        """Whether the peer is on this machine; it may be a proxy."""
        return is_loopback(self.peer)

    @property
    def peer_is_loopback(self) -> bool:
        """Whether the client is on this machine; a proxy on it does not count."""
        return self.from_loopback and not passed_on(self.headers)

    @property
    def host(self) -> str:
        """The host that the client asked for, with its port."""
        return self.forwarded.host or self.headers.get("host", "")

    @property
    def hostname(self) -> str:
        """The host without port, lower case; an invalid host as it was sent."""
        return hostname_of(self.host)

    @property
    def proto(self) -> str:
        """``http`` or ``https``, as the client sees it."""
        if said := self.forwarded.proto:
            return said
        return {"ws": "http", "wss": "https"}.get(self.scheme, self.scheme)

    def cookie(self, name: str) -> str:
        """The value of the first cookie of that name, or empty."""
        for part in self.headers.get("cookie", "").split(";"):
            key, _, value = part.partition("=")
            if key.strip() == name:
                return value.strip()
        return ""

    @property
    def is_navigation(self) -> bool:
        """Whether a browser, or a similar client, opens a page and wants HTML."""
        if self.method not in ("GET", "HEAD"):
            return False
        mode = self.headers.get("sec-fetch-mode")
        if mode is not None:
            return mode == "navigate"
        return "text/html" in self.headers.get("accept", "")

    @property
    def from_browser(self) -> bool:
        return "sec-fetch-mode" in self.headers or "sec-fetch-site" in self.headers

    @property
    def same_origin(self) -> bool:
        """Whether no other site can have made a browser send the request (CSRF).

        Browsers name the site in Sec-Fetch-Site, older browsers in Origin; a client that sends
        neither is no browser.
        """
        site = self.headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = self.headers.get("origin")
        if origin is None:
            return True
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        host = self.host.lower().removesuffix(
            {"https": ":443", "http": ":80"}.get(parts.scheme, "")
        )
        if self.trusted_peer and host == hostname_of(host):
            return bool(host) and parts.hostname == host  # it leaves the port out, as nginx's $host
        return bool(host) and parts.netloc == host


_alone = lru_cache(maxsize=1024)(Forwarded)
"""What a peer says that is not believed."""


def _joined(raw: list[tuple[bytes, bytes]], cookie: str) -> list[tuple[bytes, bytes]]:
    """Return headers with this Cookie in place of all lines of it."""
    others = [(name, value) for name, value in raw if name.lower() != b"cookie"]
    return [*others, (b"cookie", cookie.encode("latin-1"))]


async def send_answer(
    request: Request, send: Send, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    """Answer with a whole body, which is left out if the method is HEAD."""
    headers = {**headers, "Content-Length": str(len(body))}
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    content = b"" if request.method == "HEAD" else body
    await send({"type": "http.response.body", "body": content})


def is_address(host: str) -> bool:
    """Return whether a host without port is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=256)
def hostname_of(host: str) -> str:
    """Return a host without its port, lower case; an invalid host as it was sent."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host.lower()
