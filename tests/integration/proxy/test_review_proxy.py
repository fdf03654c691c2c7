"""Faults that a review found in the proxy: each happens again, to no effect.

A whole proxy process where its clients decide; its parts, on a real store, where a fault has to be
brought about inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import requests
from redis.backoff import NoBackoff
from redis.retry import Retry
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import proxy.control.status_stream
from proxy.auth.authenticator import NoAccessControl
from proxy.control.node_api import NodeDesk
from proxy.control.status_stream import Feed
from proxy.data.forward import Forwarder
from proxy.data.plane import DataPlane
from proxy.data.snapshot_cache import SnapshotCache
from proxy.data.usage import UsageTracker
from proxy.front.forward_auth import ForwardAuth
from proxy.http.metrics import Metrics
from proxy.http.request import Message, Networks, networks
from qwenctl.config.deployment import Config
from qwenctl.core.lifecycle import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.protocol.messages import REPORT_PATH, Report
from qwenctl.protocol.signing import sign_message
from qwenctl.store.store import Store
from tests.integration.proxy.running import (
    RawClient,
    RunningProxy,
    gpu,
    running,
    until,
)
from tests.simulation.life import Life
from tests.simulation.world import GPU
from tests.support.net import free_port
from tests.support.virtual_time import VirtualClock

SAME = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
JSON = {"Content-Type": "application/json"}
SECRET = "a secret of the nodes, long enough"


# A whole proxy


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy whose GPU is on; a rule refuses what lies under /admin."""
    rules = [{"activity": "refused", "path": "^/admin"}]
    gpus = {"main": gpu(preset="generic", rules=rules)}
    with running(tmp_path_factory.mktemp("on"), gpu=gpus) as proxy:
        proxy.wake()
        yield proxy


@pytest.fixture
def victim() -> Iterator[socket.socket]:
    """A server that must never hear of us."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        yield server


def heard_nothing(victim: socket.socket) -> bool:
    try:
        victim.accept()
    except TimeoutError:
        return True
    return False


def raw(proxy: RunningProxy, request: str) -> tuple[int, dict[str, str], bytes]:
    with RawClient(proxy.port) as client:
        client.send(request.replace("\n", "\r\n").encode())
        return client.answer()


UPGRADE = (
    "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
)


@pytest.mark.parametrize("more", ["", UPGRADE], ids=["http", "websocket"])
def test_a_forged_target(on: RunningProxy, victim: socket.socket, more: str) -> None:
    port = victim.getsockname()[1]
    status, _, _ = raw(on, f"GET *@127.0.0.1:{port}/x HTTP/1.1\nHost: localhost\n{more}\n")
    assert status == 400
    assert heard_nothing(victim)


def test_options_of_the_server_itself(on: RunningProxy) -> None:
    assert raw(on, "OPTIONS * HTTP/1.1\nHost: localhost\n\n")[0] == 204
    assert "Traceback" not in on.log


def handshake(proxy: RunningProxy, path: str) -> int:
    """The status of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{proxy.port}{path}", proxy=None)
    return caught.value.response.status_code


def test_a_handshake_is_not_redirected(on: RunningProxy, victim: socket.socket) -> None:
    port = victim.getsockname()[1]
    assert handshake(on, f"/redirect?to=http://127.0.0.1:{port}/x") >= 400
    assert heard_nothing(victim)


def test_a_plain_answer_is_no_handshake(on: RunningProxy) -> None:
    assert handshake(on, "/status?code=200") == 502


def test_a_message_counts_after_a_down_that_came_after_the_connection(on: RunningProxy) -> None:
    with connect(f"ws://127.0.0.1:{on.port}/ws", proxy=None) as client:
        client.send("hello")
        assert client.recv(timeout=5) == "hello"
        # Written back before the `down`, so that only the next message can renew it.
        until(lambda: "request:127.0.0.1" in leases(on), 10, "the first lease")
        on.store.release("main", actor="eve")
        on.store.pin("main", "pin:test", 3600.0, reason="test", actor="test")
        assert "request:127.0.0.1" not in leases(on)
        client.send("still here")
        assert client.recv(timeout=5) == "still here"
        until(lambda: "request:127.0.0.1" in leases(on), 10, "the lease")
    on.wait_for("ready")


def leases(proxy: RunningProxy, name: str = "main") -> list[str]:
    return [lease.name for lease in proxy.snapshot(name).leases]


@pytest.mark.parametrize("path", ["/admin", "//admin", "///admin/", "/x/%2e%2e/admin", "/./admin"])
def test_a_refusal_however_the_path_is_written(on: RunningProxy, path: str) -> None:
    assert raw(on, f"GET {path} HTTP/1.1\nHost: localhost\n\n")[0] == 403
    assert not [entry for entry in on.journal() if "admin" in entry["target"]]


def test_what_reaches_the_node(on: RunningProxy) -> None:
    head = "Host: localhost\nConnection: host, close\nX_Forwarded_For: 6.6.6.6\nX-Real-IP: 6.6.6.6"
    status, _, body = raw(on, f"POST /up HTTP/1.1\n{head}\nContent-Length: 3\n\nabc")
    assert status == 200
    echo = json.loads(body)
    got = {name.lower(): value for name, value in echo["headers"]}
    assert echo["size"] == 3
    assert "content-type" not in got
    assert got["host"] == "localhost"
    assert "6.6.6.6" not in got.values()
    assert got["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/_qwenctl/", "/_qwenctl/login"])
def test_a_next_that_is_no_address(on: RunningProxy, path: str) -> None:
    answer = requests.get(
        on.url(f"{path}?next=//["),
        headers={"Accept": "text/html"},
        allow_redirects=False,
        timeout=5,
    )
    assert answer.status_code < 500
    assert "//[" not in answer.text


@pytest.mark.slow
def test_a_request_held_before_a_down_is_given_up(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", idle_timeout=3, local={"fail": "boot_hangs"})}
    with running(tmp_path, gpu=gpus) as proxy, ThreadPoolExecutor(1) as pool:
        held = pool.submit(requests.post, proxy.url("/x"), json={}, timeout=30)
        until(lambda: leases(proxy), 10, "the lease")
        proxy.store.release("main", actor="eve")
        answer = held.result(timeout=20)
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "down" in answer.json()["detail"]
        assert leases(proxy) == []
        asked = [e for e in proxy.store.events("main", 1000) if e.kind in ("lease", "down")]
        assert [event.kind for event in asked] == ["lease", "down"]


@pytest.mark.slow
def test_a_proxy_that_is_told_to_stop(tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", local={"fail": "boot_hangs"})}
    with running(tmp_path, gpu=gpus) as proxy, ThreadPoolExecutor(3) as pool:

        def watch() -> float:
            events = proxy.url("/_qwenctl/api/events")
            with requests.get(events, stream=True, timeout=30) as stream:
                for _ in stream.iter_content(None):
                    watching.set()
            return time.monotonic()

        def wait() -> tuple[requests.Response, float]:
            return requests.post(proxy.url("/x"), json={}, timeout=30), time.monotonic()

        watching = threading.Event()
        stream, held = pool.submit(watch), pool.submit(wait)
        assert watching.wait(10)
        until(lambda: leases(proxy), 10, "the lease")
        told_at = time.monotonic()
        proxy.process.terminate()
        answer, answered_at = held.result(timeout=20)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answered_at - told_at < 3
        assert stream.result(timeout=20) - told_at < 3
        assert proxy.process.wait(timeout=15) in (0, -signal.SIGTERM)
        assert "Traceback" not in proxy.log


# Its parts


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


@pytest.fixture
def faulty(client: redis.Redis, deployment: str, clock: VirtualClock) -> FaultyStore:
    return FaultyStore(client, deployment, now=clock)


@pytest.fixture
def life(store: Store, clock: VirtualClock) -> Life:
    """The GPU that the parts are about; same deployment as ``faulty``."""
    return Life(store, clock)


class Parts:
    """A proxy's parts without its server. Made on the event loop."""

    def __init__(self, store: Store, trusted: Networks = (), **settings: Any) -> None:
        options = settings.pop("proxy", {})
        table = {"preset": "generic", "address": "127.0.0.1", **settings}
        table["service"] = [{"command": ["true"], "port": free_port()}]
        self.config = Config.model_validate(
            {"node_secret": SECRET, "proxy": options, "gpu": {GPU: table}}
        )
        everybody, gpus = NoAccessControl(), self.config.gpu
        self.snapshots = SnapshotCache(store, [GPU])
        self.usage = UsageTracker(store, gpus, "me")
        self.forwarder = Forwarder()
        self.feed = Feed(self.config, store, self.snapshots, everybody, trusted)
        self.gate = ForwardAuth(self.config, store, self.snapshots, self.usage, everybody, trusted)
        self.data = DataPlane(
            self.config,
            store,
            self.snapshots,
            self.usage,
            self.forwarder,
            everybody,
            _no_pages,
            Metrics(),
            trusted,
            "me",
        )

    def know(self, snapshot: Snapshot) -> None:
        """Take this for what is so now."""
        view = self.snapshots.peek(GPU)
        view.snapshot, view.fetched_at = snapshot, time.monotonic()

    async def ask(self, method: str = "POST", **headers: str) -> tuple[int, dict[str, Any]]:
        """One request to the data plane; its status and its problem."""
        sent: list[Message] = []
        await self.data(scope(method, headers or JSON), _nothing_more, _into(sent))
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
        await made.feed.stop()
        await made.data.stop()
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


async def _no_pages(*_: object) -> None:
    raise AssertionError("no page is due here")


async def _nothing_more() -> Message:
    """The end of a request without a body, and then a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError


def _into(sent: list[Message]) -> Callable[[Message], Any]:
    async def send(message: Message) -> None:
        sent.append(message)

    return send


async def soon(condition: Callable[[], Any], seconds: float, what: str) -> None:
    """Wait for what happens in another thread or task."""
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("error", [RuntimeError("odd"), redis.exceptions.ResponseError("OOM")])
def test_activity_is_written_after_any_error(
    faulty: FaultyStore, life: Life, error: Exception
) -> None:
    life.wake()

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            faulty.faults["touch"] = error
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: not faulty.faults, 5, "the fault")
                await soon(
                    lambda: {"request:bob", "inflight:me"} <= set(life.leases), 5, "the lease"
                )

    asyncio.run(go())


def test_a_lost_lease_of_work_is_soon_there_again(
    faulty: FaultyStore, life: Life, client: redis.Redis
) -> None:
    life.wake()

    async def go() -> None:
        async with parts(faulty) as made:
            made.usage.start()
            with made.usage.use(GPU, "request:bob"):
                await soon(lambda: "inflight:me" in life.leases, 5, "the lease")
                for _ in range(2):
                    key = next(key for key in faulty.keys(GPU) if key.endswith(":leases"))
                    assert client.zrem(key, "inflight:me") == 1
                    await soon(lambda: "inflight:me" in life.leases, 2.5, "the lease again")

    asyncio.run(go())


def test_snapshots_are_taken_after_any_error(faulty: FaultyStore, life: Life) -> None:
    life.wake()

    async def go() -> None:
        async with parts(faulty) as made:
            view = made.snapshots.peek(GPU)
            faulty.faults["snapshot"] = RuntimeError("odd")
            await asyncio.wait_for(made.snapshots.refresh(GPU), 5)
            assert view.lost == "odd"
            await asyncio.wait_for(made.snapshots.refresh(GPU), 5)
            assert (view.lost, view.snapshot.phase) == ("", Phase.READY)

    asyncio.run(go())


def test_a_page_gets_news_after_any_error(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []
    page_status = proxy.control.status_stream.page_status

    def failing(*args: Any, **options: Any) -> dict[str, Any]:
        if errors:
            raise errors.pop()
        return page_status(*args, **options)

    monkeypatch.setattr(proxy.control.status_stream, "page_status", failing)

    async def go() -> None:
        async with parts(faulty) as made:
            await made.snapshots.start()
            sent: list[Message] = []
            stream = asyncio.ensure_future(
                made.feed.stream(scope(path="/_qwenctl/api/events"), _nothing_more, _into(sent))
            )

            def told(what: str) -> bool:
                return any(what in str(message.get("body")) for message in list(sent))

            await soon(lambda: told("phase"), 5, "the first status")
            errors.append(RuntimeError("odd"))
            await asyncio.to_thread(life.store.look, GPU, actor="a", cause="b")
            await soon(lambda: not errors, 5, "the error")
            block = {"reason": "a new disk", "actor": "eve"}
            await asyncio.to_thread(life.store.block, GPU, "maintenance:eve", 60.0, **block)
            await soon(lambda: told("a new disk"), 5, "news")
            assert not stream.done()
            stream.cancel()

    asyncio.run(go())


def test_many_waiting_pages_cost_as_much_as_one(
    faulty: FaultyStore, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_statuses: list[Phase] = []
    page_status = proxy.control.status_stream.page_status

    def counting(snapshot: Snapshot, *args: Any, **options: Any) -> dict[str, Any]:
        made_statuses.append(snapshot.phase)
        return page_status(snapshot, *args, **options)

    monkeypatch.setattr(proxy.control.status_stream, "page_status", counting)
    pages, changes = 200, 10

    async def go() -> None:
        async with parts(faulty) as made:
            await made.snapshots.start()
            inboxes: list[list[Message]] = [[] for _ in range(pages)]
            streams = [
                asyncio.ensure_future(
                    made.feed.stream(
                        scope(path="/_qwenctl/api/events"), _nothing_more, _into(inbox)
                    )
                )
                for inbox in inboxes
            ]
            for number in range(changes):
                reason = f"reason {number}."
                block = {"reason": reason, "actor": "eve"}

                def told(inbox: list[Message], reason: str = reason) -> bool:
                    return any(reason in str(message.get("body")) for message in inbox[-5:])

                await asyncio.to_thread(life.store.block, GPU, "maintenance:eve", 60.0, **block)
                await soon(lambda: all(map(told, inboxes)), 10, "news")
            for stream in streams:
                stream.cancel()

    asyncio.run(go())
    assert len(made_statuses) >= changes
    assert len(made_statuses) <= 2 * changes + 2


@pytest.mark.parametrize(
    ("wake_on", "headers"),
    [
        ("never", JSON),
        ("never", {**JSON, **SAME}),
        ("visit", {**JSON, "Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_what_may_not_wake_does_not_by_an_old_snapshot_either(
    faulty: FaultyStore, life: Life, wake_on: str, headers: dict[str, str]
) -> None:
    life.wake()
    life.store.release(GPU, actor="eve")
    assert life.step() is Phase.DRAINING
    draining = life.now
    life.run(30)
    assert life.now.phase is Phase.OFF

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty, wake_on=wake_on) as made:
            made.know(draining)
            return await made.ask(**headers)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "not_ready")
    assert "demand" in faulty.asked  # it was judged by the old snapshot first
    assert life.leases == []
    life.run(5)
    assert life.now.phase is Phase.OFF
    assert len(life.cloud.starts) == 1


def leaving(life: Life) -> Snapshot:
    """A GPU that drains because the cloud takes it back; what a proxy knows of it then."""
    life.wake()
    life.node.interrupted = True
    life.node.speak()
    assert life.step() is Phase.DRAINING
    return life.now


FORM = {"Content-Type": "text/xml"}
"""By the generic preset it keeps the GPU on and does not wake it."""


def test_a_part_of_running_work_is_not_forwarded_into_a_stop(
    faulty: FaultyStore, life: Life
) -> None:
    old = leaving(life)
    life.clock.advance(30)
    life.controller.step()
    assert life.now.phase is Phase.STOPPING

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty) as made:

            async def forward(*_: object) -> int:
                raise AssertionError("it is too late to forward it")

            made.know(old)
            made.data._forward = forward  # type: ignore[assignment]
            return await made.ask(**FORM)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "not_ready")
    assert "stopping" in problem["detail"]


def test_a_part_of_running_work_holds_the_stop_back_before_it_is_forwarded(
    faulty: FaultyStore, life: Life
) -> None:
    old = leaving(life)
    life.clock.advance(30)

    async def go() -> list[Phase]:
        async with parts(faulty) as made:
            made.know(old)
            seen: list[Phase] = []

            async def forward(*_: object) -> int:
                life.controller.step()
                seen.append(life.now.phase)
                assert made.usage.in_flight(GPU) == 1
                return 200

            made.data._forward = forward  # type: ignore[assignment]
            await made.data(scope("POST", FORM), _nothing_more, _into([]))
            return seen

    assert asyncio.run(go()) == [Phase.DRAINING]
    assert "request:127.0.0.1" not in [lease.name for lease in life.now.leases]
    life.controller.step()
    assert life.now.phase is Phase.STOPPING


def test_an_older_write_does_not_undo_a_younger_one(faulty: FaultyStore, life: Life) -> None:
    """The end of one request is on its way to the store as the next one begins."""
    leaving(life)
    go_on = threading.Event()
    touch = faulty.touch

    def slow(gpu: str, inflight: str, inflight_ttl: float, *args: Any, **options: Any) -> Phase:
        if not inflight_ttl:
            assert go_on.wait(20)
        return touch(gpu, inflight, inflight_ttl, *args, **options)

    async def go() -> list[str]:
        async with parts(faulty) as made:
            usage = made.usage
            with usage.use(GPU, "request:ada"):
                await usage.recorded(GPU)
            faulty.touch = slow  # type: ignore[method-assign]
            ending = asyncio.ensure_future(usage.recorded(GPU))
            await asyncio.sleep(0.05)
            with usage.use(GPU, "request:ada"):
                begun = asyncio.ensure_future(usage.recorded(GPU))
                await asyncio.sleep(0.05)
                go_on.set()
                assert await begun is Phase.DRAINING
                await ending
                return life.leases

    assert "inflight:me" in asyncio.run(go())


def test_a_part_of_running_work_is_forwarded_without_the_store(life: Life) -> None:
    """Nobody can stop the instance then."""
    old = leaving(life)

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(gone()) as made:
            made.know(old)
            return await made.ask(**FORM)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (502, "node_unreachable")  # it was tried


def test_who_may_not_wake_is_judged_anew_once_the_cloud_takes_the_instance_back(
    faulty: FaultyStore, life: Life
) -> None:
    """The proxy learns of the notice while it asks for a lease."""
    life.wake()
    life.store.release(GPU, actor="eve")
    assert life.step() is Phase.DRAINING
    life.clock.advance(1)  # the request comes after that
    before = life.now
    life.node.interrupted = True
    life.node.speak()

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty, wake_on="never") as made:
            made.know(before)
            asking = asyncio.ensure_future(made.ask())
            await soon(lambda: "demand" in faulty.asked, 10, "the question")
            await made.snapshots.refresh(GPU)
            return await asyncio.wait_for(asking, 20)

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "not_ready")
    assert "command line" in problem["detail"]
    assert life.leases == []


def test_the_store_is_lost_between_snapshot_and_demand(
    life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    asleep = life.now

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(gone()) as made:
            made.know(asleep)
            return await made.ask()

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "store_lost")
    assert "Traceback" not in caplog.text


def gone() -> Store:
    """A store that nobody answers for."""
    return Store(redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)), "gone")


def test_many_requests_to_a_dead_node(faulty: FaultyStore, life: Life) -> None:
    life.wake()

    async def one(made: Parts, after: float) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(after)
        return await made.ask()

    async def go() -> list[tuple[int, dict[str, Any]]]:
        async with parts(faulty) as made:
            await made.snapshots.start()
            faulty.asked.clear()
            return await asyncio.gather(*(one(made, 0.01 * number) for number in range(60)))

    answers = asyncio.run(go())
    assert {(status, problem["code"]) for status, problem in answers} == {(502, "node_unreachable")}
    assert 1 <= faulty.asked.count("look") <= 6
    # Each asks once for one younger than itself, and many of these are one; then twice a second.
    assert faulty.asked.count("snapshot") <= 100


def test_a_failure_is_told_in_one_line(faulty: FaultyStore, life: Life) -> None:
    life.wake()
    life.node.mood = "broken"
    life.step()
    node = life.now.node
    report = Report(
        gpu=GPU,
        boot_id=node["boot_id"],
        start_seq=int(node["start_seq"]),
        state="failed",
        error="the service crashes\nKeyError: 'TOKEN=abc'",
    )
    life.store.report(report, "nonce-of-the-failure", heartbeat=5.0)
    assert life.step() is Phase.FAILED

    async def go() -> tuple[int, dict[str, Any]]:
        async with parts(faulty, wake_on="never") as made:
            return await made.ask()

    status, problem = asyncio.run(go())
    assert (status, problem["code"]) == (503, "service_failed")
    assert problem["detail"].endswith("the service crashes")


# The gate


async def gate(made: Parts, peer: str = "127.0.0.1", **headers: str) -> int:
    sent: list[Message] = []
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = scope(path="/_qwenctl/gate", headers=named, peer=peer)
    await made.gate(request, _nothing_more, _into(sent))
    return int(sent[0]["status"])


@pytest.mark.parametrize("believed", ["x-original", "x-forwarded"])
def test_the_gate_believes_one_pair_of_headers(
    faulty: FaultyStore, life: Life, believed: str
) -> None:
    life.wake()
    rules = [{"activity": "refused", "path": "^/admin"}]
    options = {"gate_headers": believed}

    async def go() -> None:
        async with parts(
            faulty, networks(["192.0.2.7"]), rules=rules, wake_on="never", proxy=options
        ) as made:
            for prefix in ("x-original", "x-forwarded"):
                refused = await gate(made, **{f"{prefix}-uri": "/admin"})
                assert refused == (403 if prefix == believed else 204)
            # A client's own header of the other pair does not hide what the data plane says.
            other = {"x-original": "x-forwarded", "x-forwarded": "x-original"}[believed]
            both = {f"{believed}-uri": "/admin", f"{other}-uri": "/x"}
            assert await gate(made, **both) == 403
            assert await gate(made, "192.0.2.7", **{f"{believed}-uri": "/x"}) == 204
            assert await gate(made, "192.0.2.8", **{f"{believed}-uri": "/x"}) == 403

    asyncio.run(go())


def test_the_gate_tells_nothing_to_strangers(store: Store) -> None:
    """Which tiers there are is for a trusted proxy to know."""
    gpus = {"a": {"tier": "speed"}, "b": {"tier": "quality"}}
    config = Config.model_validate({"node_secret": SECRET, "gpu": gpus})

    async def ask(peer: str) -> str:
        sent: list[Message] = []
        usage = UsageTracker(store, config.gpu, "me")
        snapshots = SnapshotCache(store, list(config.gpu))
        gate = ForwardAuth(config, store, snapshots, usage, NoAccessControl(), ())
        headers = {"x-qwenctl-tier": "fast"}
        request = scope(path="/_qwenctl/gate", headers=headers, peer=peer)
        await gate(request, _nothing_more, _into(sent))
        return str(json.loads(sent[1]["body"])["code"])

    assert asyncio.run(ask("192.0.2.8")) == "not_trusted"
    assert asyncio.run(ask("127.0.0.1")) == "unknown_tier"


def test_the_gate_without_any_gpu(store: Store) -> None:
    config = Config.model_validate({"node_secret": SECRET})

    async def ask() -> int:
        sent: list[Message] = []
        usage, snapshots = UsageTracker(store, {}, "me"), SnapshotCache(store, [])
        gate = ForwardAuth(config, store, snapshots, usage, NoAccessControl(), ())
        await gate(scope(path="/_qwenctl/gate"), _nothing_more, _into(sent))
        return int(sent[0]["status"])

    assert asyncio.run(ask()) == 503


def test_the_gate_turns_a_drain_back(faulty: FaultyStore, life: Life) -> None:
    life.wake()
    life.store.release(GPU, actor="eve")
    assert life.step() is Phase.DRAINING

    async def go() -> int:
        async with parts(faulty) as made:
            headers = {"x-original-method": "POST", "x-original-uri": "/x", **JSON}
            return await gate(made, **headers)

    assert asyncio.run(go()) == 204
    assert life.now.phase is Phase.READY
    assert "request:127.0.0.1" in life.leases


def test_the_gate_lets_a_part_of_running_work_through(faulty: FaultyStore, life: Life) -> None:
    """The stream of an answer, which the data plane in front opens while the cloud takes it back."""
    old = leaving(life)
    life.clock.advance(30)

    async def go() -> int:
        async with parts(faulty) as made:
            made.know(old)
            headers = {"x-original-method": "POST", "x-original-uri": "/x", **FORM}
            status = await gate(made, **headers)
            life.controller.step()
            assert life.now.phase is Phase.DRAINING  # the stop waits for it
            assert "inflight:me" in life.leases
            return status

    assert asyncio.run(go()) == 204
    life.controller.step()
    assert life.now.phase is Phase.STOPPING


def test_the_gate_lets_nothing_into_a_stop(faulty: FaultyStore, life: Life) -> None:
    old = leaving(life)
    life.clock.advance(30)
    life.controller.step()
    assert life.now.phase is Phase.STOPPING

    async def go() -> int:
        async with parts(faulty) as made:
            made.know(old)
            headers = {"x-original-method": "POST", "x-original-uri": "/x", **FORM}
            return await gate(made, **headers)

    assert asyncio.run(go()) == 403
    assert "inflight:me" not in life.leases


# The node


@pytest.mark.parametrize(("in_flight", "status"), [(1, 200), (0, 503)])
def test_a_report_to_a_proxy_without_store(in_flight: int, status: int) -> None:
    config = Config.model_validate({"node_secret": SECRET, "gpu": {GPU: {}}})
    desk = NodeDesk(config, gone(), Metrics(), lambda _: in_flight)
    body = Report(gpu=GPU, boot_id="boot-0001", start_seq=7, state="ready").model_dump_json()
    signed = sign_message(SECRET, "POST", REPORT_PATH, body.encode(), now=time.time())
    got, answer, _ = desk.take(REPORT_PATH, body.encode(), signed)
    assert got == status
    assert status != 200 or json.loads(answer)["start_seq"] == 7
    forged = {**signed, "X-Qwenctl-Signature": "0" * 64}
    assert desk.take(REPORT_PATH, body.encode(), forged)[0] == 401
