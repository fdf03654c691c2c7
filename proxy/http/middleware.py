"""Checks in front of other ASGI applications: the host name, and small bodies as a whole."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable
from urllib.parse import urlsplit

from qwenctl.config.deployment import Config
from qwenctl.lib.settings_types import is_loopback

from .authority import is_host
from .problem import refuse, send_problem
from .request import (
    ASGIApp,
    Message,
    Networks,
    Receive,
    Request,
    Scope,
    Send,
    hostname_of,
    is_address,
)

BODY_SECONDS = 20.0
"""How long a request to the control plane may take to arrive."""


class BoundedBody:
    """Passes only whole bodies on, so that slow senders hold no threads of an application."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request.of(scope, ())
        try:
            body = await _read(receive, self._limit)
        except asyncio.TimeoutError:
            await send_problem(request, send, 408, "too_slow", "the body did not arrive in time")
            return
        except _TooLarge:
            await send_problem(request, send, 413, "too_large", "the body is too large")
            return
        if body is None:
            return

        async def read() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, read, send)


class _TooLarge(Exception):
    pass


async def _read(receive: Receive, limit: int) -> bytes | None:
    """Return the body, or None if the client has disconnected."""
    chunks: list[bytes] = []
    size, more = 0, True
    deadline = time.monotonic() + BODY_SECONDS
    while more:
        message = await asyncio.wait_for(receive(), deadline - time.monotonic())
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise _TooLarge
        more = message.get("more_body", False)
    return b"".join(chunks)


class HostCheck:
    """Refuses host names that are not ours, and those that contradict each other.

    Without access control a site whose name points at this machine (DNS rebinding) could otherwise
    act as the user. Where the proxy is reached from other machines (``anonymous``) that concerns
    browsers alone, and an address is no name that a site could have.
    """

    def __init__(self, app: ASGIApp, config: Config, trusted: Networks) -> None:
        self._app = app
        self._config = config
        self._trusted = trusted
        self._open = config.access.mode == "none"
        self._anonymous = config.proxy.allow_anonymous
        names = (*_host_names(config), *((socket.gethostname(),) if self._anonymous else ()))
        self._names = {"localhost", *(name.lower() for name in names if name)}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        request = Request.of(scope, self._trusted)
        if not is_host(request.forwarded.host.encode("latin-1")):
            detail = "the X-Forwarded-Host is not a host name or address with an optional port"
            return refuse(request, scope, send, 400, "bad_host", detail)
        if self._open and not self._is_ours(request):
            detail = (
                f"unknown host name {request.hostname!r}; set proxy.public_url or gpu.NAME.hosts"
            )
            return refuse(request, scope, send, 421, "unknown_host", detail)
        if self._contradicts(request):
            detail = (
                "Host and X-Forwarded-Host (or Forwarded) name different GPUs; have the proxy in "
                "front set both"
            )
            return refuse(request, scope, send, 400, "bad_host", detail)
        return self._app(scope, receive, send)

    def _is_ours(self, request: Request) -> bool:
        name = request.hostname
        if not name or name in self._names or is_loopback(name):
            return True
        if not self._anonymous:
            return False
        by_browser = request.from_browser or request.is_navigation or "origin" in request.headers
        return not by_browser or "." not in name or is_address(name)

    def _contradicts(self, request: Request) -> bool:
        """Return whether a forwarded host, which a client may have sent, names another GPU.

        Many a proxy in front sets Host alone and passes the client's X-Forwarded-Host on.
        """
        if not request.forwarded.host:
            return False
        named = self._config.gpus_named(hostname_of(request.headers.get("host", "")))
        return bool(named) and named != self._config.gpus_at(request.hostname)


def _host_names(config: Config) -> list[str]:
    """Return the host names that the configuration gives this proxy."""
    hosts = [host for gpu in config.gpu.values() for host in gpu.hosts]
    urls = [urlsplit(url).hostname or "" for url in (config.url, *config.node_urls)]
    return [*hosts, *urls, config.proxy.listen.rpartition(":")[0].strip("[]")]
