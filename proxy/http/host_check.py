"""Refuse requests to host names that are not ours, where there is no access control."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable

from qwenctl.lib.settings_types import is_loopback

from .problem import refuse_websocket, send_problem
from .request import ASGIApp, Networks, Receive, Request, Scope, Send

__all__ = ["HostCheck"]


class HostCheck:
    """Answers to our own host names only.

    A site whose name points at this machine (DNS rebinding) could otherwise act as the user.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], trusted: Networks) -> None:
        self._app = app
        self._trusted = trusted
        self._names = {"localhost", *(name.lower() for name in names if name)}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        request = Request.of(scope, self._trusted)
        name = request.hostname
        if name and name not in self._names and not is_loopback(name):
            detail = f"unknown host name {name!r}; set proxy.public_url or gpu.NAME.hosts"
            if scope["type"] == "websocket":
                return refuse_websocket(scope, send, 421, "unknown_host", detail)
            return send_problem(request, send, 421, "unknown_host", detail)
        return self._app(scope, receive, send)
