"""Requests, visitors and snapshots, made up for pure tests."""

from __future__ import annotations

from typing import Any

from proxy.http.request import Request, networks
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.identity import USE, WAKE_ALWAYS, Identity
from qwenctl.core.snapshot import Lease, Snapshot

BROWSER = Identity(session="b1")
KEY = Identity(key_id="ci", scopes=frozenset({USE, WAKE_ALWAYS}))
ANYBODY = Identity(address="127.0.0.1")

SAME_SITE = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Origin": "http://me"}
NAVIGATION = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}


def request(
    method: str = "GET",
    target: str = "/",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    *,
    peer: str = "203.0.113.9",
    trusted: tuple[str, ...] = (),
    scheme: str = "http",
) -> Request:
    """A request as the ASGI server would hand it over; Host is ``me`` unless given."""
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", "me"))
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "websocket" if method == "WEBSOCKET" else "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
        "client": (peer, 1234),
        "scheme": scheme,
    }
    return Request.from_scope(scope, networks(trusted))


def gpu(**settings: Any) -> GpuConfig:
    return GpuConfig.model_validate(settings)


def snapshot(phase: str, *, blocked: bool = False) -> Snapshot:
    state = {"phase": phase, "start_seq": "1"}
    blocks = (Lease("maintenance:x", float("inf")),) if blocked else ()
    return Snapshot("main", 1000.0, state, blocks=blocks)
