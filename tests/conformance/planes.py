"""The planes that every case runs on: the built-in one, and the documented ways behind a front.

| plane | what stands between client and node |
|---|---|
| ``direct`` | qwenctl's own data plane, which does not trust its peer |
| ``trusted`` | the same, whose peer is a trusted proxy |
| ``nginx-gate``, ``caddy-gate`` | the front, which asks the gate and forwards by itself |
| ``nginx-tls``, ``caddy-tls`` | the front, which passes everything on to qwenctl |
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.case import CLIENT, HOST, raw
from tests.conformance.client import Client
from tests.conformance.recorder import Recorder
from tests.integration.proxy.fronts import in_front
from tests.integration.proxy.running import RunningProxy, gpu, running

PLANES = ("direct", "trusted", "nginx-gate", "nginx-tls", "caddy-gate", "caddy-tls")


@dataclass
class Plane:
    """Where a client connects to, and the node behind it."""

    name: str
    port: int
    node: Recorder
    proxy: RunningProxy

    @property
    def address(self) -> str:
        """The client's address."""
        return "127.0.0.1" if self.name == "trusted" else CLIENT

    def client(self, methods: list[str]) -> Client:
        return Client(self.port, self.address, methods)

    def barrier(self) -> None:
        """Return once a request has passed: what was sent before it has been worked on by then."""
        with self.client(["GET"]) as client:
            client.perform([raw("GET /barrier HTTP/1.1", HOST, "Connection: close", "", "")])
            assert client.read().status == 200


class Planes:
    """Planes that are started when first asked for, and run until the end of the session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._proxies: dict[str, tuple[RunningProxy, Recorder]] = {}
        self._planes: dict[str, Plane] = {}

    def close(self) -> None:
        self._stack.close()

    def get(self, name: str) -> Plane:
        if name not in self._planes:
            by = "x-forwarded" if name.startswith("caddy") else "x-original"
            proxy, node = self._proxy(by)
            port = proxy.port
            if name not in ("direct", "trusted"):
                folder = self._folder / name
                folder.mkdir()
                port = self._stack.enter_context(
                    in_front(name.removesuffix("-gate"), folder, proxy.port)
                )
            self._planes[name] = Plane(name, port, node, proxy)
        return self._planes[name]

    def _proxy(self, gate_headers: str) -> tuple[RunningProxy, Recorder]:
        if gate_headers not in self._proxies:
            node = Recorder()
            self._stack.callback(node.close)
            self._proxies[gate_headers] = (
                self._stack.enter_context(
                    _running(self._folder / gate_headers, node, gate_headers)
                ),
                node,
            )
        return self._proxies[gate_headers]


@contextlib.contextmanager
def _running(folder: Path, node: Recorder, gate_headers: str) -> Iterator[RunningProxy]:
    service = {"port": node.port, "readiness": {"path": "/ready", "interval": 0.05}}
    main = gpu(agent=False, preset="generic", hosts=["gpu.example"], service=[service])
    settings = {"gate_headers": gate_headers, "trusted_proxies": ["127.0.0.1"]}
    with running(folder, gpu={"main": main}, proxy=settings) as proxy:
        proxy.wake()
        yield proxy
