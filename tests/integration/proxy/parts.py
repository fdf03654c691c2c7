"""A proxy's parts without its server, on a real store whose calls can fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from proxy.auth.authenticator import Authenticators
from proxy.control.pages import Pages
from proxy.control.status_stream import StatusStream
from proxy.data.admit import Admit
from proxy.data.forward import Forwarder
from proxy.data.plane import DataPlane
from proxy.data.services import Services
from proxy.data.snapshot_cache import SnapshotCache
from proxy.data.usage import UsageTracker
from proxy.data.waiting import WaitingPages
from proxy.front.forward_auth import ForwardAuth
from proxy.http.metrics import Metrics
from proxy.http.request import Message, Networks
from qwenctl.config.deployment import Config
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.store.store import Store
from tests.simulation.life import Life
from tests.simulation.puppets import GPU
from tests.support.net import free_port

SAME = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
JSON = {"Content-Type": "application/json"}
SECRET = "a secret of the nodes, long enough"


class FaultyStore(Store):
    """Counts what is asked of it; the next script of a name in ``faults`` raises that error."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.faults: dict[str, Exception] = {}
        self.asked: list[str] = []

    def _run(self, script: str, gpu: str, *args: str | int | float) -> Any:
        self.asked.append(script)
        if fault := self.faults.pop(script, None):
            raise fault
        return super()._run(script, gpu, *args)


def made_services(
    config: Config, store: Store, trusted: Networks = (), metrics: Metrics | None = None
) -> Services:
    """What the parts share, with open access."""
    snapshots, metrics = SnapshotCache(store, list(config.gpu)), metrics or Metrics()
    usage = UsageTracker(store, config.gpu, "me")
    admit = Admit(store, snapshots, usage, metrics)
    everybody = Authenticators(config, store)
    return Services(config, store, "me", trusted, snapshots, usage, everybody, metrics, admit)


class Parts:
    """A proxy's parts without its server. Made on the event loop."""

    def __init__(self, store: Store, trusted: Networks = (), **settings: Any) -> None:
        options, metrics = settings.pop("proxy", {}), settings.pop("metrics", None)
        observers = settings.pop("response_observers", ())
        table = {"preset": "generic", "address": "127.0.0.1", **settings}
        table["service"] = [{"command": ["true"], "port": free_port()}]
        self.config = Config.model_validate(
            {"node_secret": SECRET, "proxy": options, "gpu": {GPU: table}}
        )
        services = made_services(self.config, store, trusted, metrics)
        self.snapshots, self.usage = services.snapshots, services.usage
        self.admit = services.admit
        self.forwarder = Forwarder()
        waiting = WaitingPages(self.config, store)
        self.stream = StatusStream(services, waiting)
        self.gate = ForwardAuth(services)
        pages = Pages(services, self.stream, waiting)
        self.data = DataPlane(services, self.forwarder, pages, observers)

    def know(self, snapshot: Snapshot) -> None:
        """Take this for what is so now."""
        view = self.snapshots.peek(GPU)
        view.snapshot, view.fetched_at = snapshot, time.monotonic()

    async def ask(self, method: str = "POST", **headers: str) -> tuple[int, dict[str, Any]]:
        """One request to the data plane; its status and its problem."""
        sent: list[Message] = []
        await self.data(scope(method, headers or JSON), nothing_more, into(sent))
        return sent[0]["status"], json.loads(sent[1]["body"])


@contextlib.asynccontextmanager
async def parts(store: Store, trusted: Networks = (), **settings: Any) -> AsyncIterator[Parts]:
    made = Parts(store, trusted, **settings)
    await made.forwarder.start()
    try:
        yield made
    finally:
        await made.usage.stop()
        await made.snapshots.stop()
        await made.stream.stop()
        await made.data.stop()
        await made.admit.stop()
        await made.forwarder.stop()


def scope(
    method: str = "GET",
    headers: dict[str, str] | None = None,
    path: str = "/x",
    peer: str = "127.0.0.1",
) -> dict[str, Any]:
    pairs = {"Host": "localhost", **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in pairs.items()],
        "client": (peer, 1234),
        "scheme": "http",
    }


async def nothing_more() -> Message:
    """The end of a request without a body, and then a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError


def into(sent: list[Message]) -> Callable[[Message], Any]:
    async def send(message: Message) -> None:
        sent.append(message)

    return send


async def soon(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait for what happens in another thread or task."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        await asyncio.sleep(0.02)


def leaving(life: Life) -> Snapshot:
    """A GPU that drains because the cloud takes it back; what a proxy knows of it then."""
    life.wake()
    life.node.interrupted = True
    life.node.speak()
    assert life.step() is Phase.DRAINING
    return life.now


FORM = {"Content-Type": "text/xml"}
"""By the generic preset it keeps the GPU on and does not wake it."""


def gone() -> Store:
    """A store that nobody answers for."""
    return Store(redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)), "gone")
