"""Requests, read from ASGI scopes."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from qwenctl.lib.settings_types import is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Networks = tuple["ipaddress.IPv4Network | ipaddress.IPv6Network", ...]


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
        for name, value in raw:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        path = scope.get("raw_path") or scope["path"].encode()
        target = path.decode("latin-1").partition("?")[0]
        if query := scope.get("query_string"):
            target += "?" + query.decode("latin-1")
        client = scope.get("client")
        peer = client[0] if client else ""
        websocket = scope["type"] == "websocket"
        return cls(
            method="WEBSOCKET" if websocket else scope["method"],
            path=scope["path"],
            target=target,
            headers=headers,
            raw_headers=raw,
            peer=peer,
            scheme=str(scope.get("scheme", "http")),
            trusted_peer=bool(trusted) and _within(peer, trusted),
        )

    @property
    def sent_path(self) -> str:
        """The path as it was sent, percent-encoded."""
        return self.target.partition("?")[0]

    @property
    def client(self) -> str:
        """The client's address: the peer's, or that given by a trusted proxy in front."""
        if self.trusted_peer and (forwarded := self.headers.get("x-forwarded-for")):
            return forwarded.rpartition(",")[2].strip() or self.peer
        return self.peer

    @property
    def from_loopback(self) -> bool:
        """Whether the peer is on this machine; it may be a proxy."""
        return is_loopback(self.peer)

    @property
    def peer_is_loopback(self) -> bool:
        """Whether the client is on this machine; a proxy on it does not count."""
        return self.from_loopback and "x-forwarded-for" not in self.headers

    @property
    def host(self) -> str:
        """The host that the client asked for, with its port."""
        if self.trusted_peer and (forwarded := self.headers.get("x-forwarded-host")):
            return forwarded
        return self.headers.get("host", "")

    @property
    def hostname(self) -> str:
        """The host without port, lower case; an invalid host as it was sent."""
        return hostname_of(self.host)

    @property
    def proto(self) -> str:
        """``http`` or ``https``, as the client sees it."""
        if self.trusted_peer and (forwarded := self.headers.get("x-forwarded-proto")):
            return forwarded
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


def _within(address: str, allowed: Networks) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in allowed)
