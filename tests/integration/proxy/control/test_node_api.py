"""Node messages while the store does not answer."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from proxy.control.node_api import NodeApi
from proxy.http.metrics import Metrics
from qwenctl.config.deployment import Config
from qwenctl.core import leases
from qwenctl.core.phase import Phase
from qwenctl.protocol.messages import HELLO_PATH, REPORT_PATH, Report
from qwenctl.protocol.signing import sign_message
from qwenctl.store.store import Store
from tests.integration.proxy.parts import SECRET, gone
from tests.integration.qwenctl.store.store_calls import bring
from tests.simulation.puppets import GPU


@pytest.mark.parametrize(("in_flight", "status"), [(1, 200), (0, 503)])
def test_a_report_to_a_proxy_without_store(in_flight: int, status: int) -> None:
    config = Config.model_validate({"node_secret": SECRET, "gpu": {GPU: {}}})
    api = NodeApi(config, gone(), Metrics(), lambda _: in_flight)
    body = Report(gpu=GPU, boot_id="boot-0001", start_seq=7, state="ready").model_dump_json()
    signed = sign_message(SECRET, "POST", REPORT_PATH, body.encode(), now=time.time())
    assert api.refuse_forged(REPORT_PATH, body.encode(), signed) is None
    got, answer, _ = api.record(REPORT_PATH, body.encode(), signed)
    assert got == status
    assert status != 200 or json.loads(answer)["start_seq"] == 7
    forged = {**signed, "X-Qwenctl-Signature": "0" * 64}
    refusal = api.refuse_forged(REPORT_PATH, body.encode(), forged)
    assert refusal
    assert refusal[0] == 401


OTHER = "another deployment's secret, which is long enough"


def refused(store: Store, body: dict[str, object], peer: str, secret: str = OTHER) -> str:
    """Send a hello; return the code that is noted for the GPU."""
    config = Config.model_validate({"node_secret": SECRET, "gpu": {GPU: {}}})
    api = NodeApi(config, store, Metrics())
    content = json.dumps(body).encode()
    signed = sign_message(secret, "POST", HELLO_PATH, content, now=time.time())
    headers = [(name.lower().encode(), value.encode()) for name, value in signed.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": HELLO_PATH,
        "raw_path": HELLO_PATH.encode(),
        "query_string": b"",
        "scheme": "http",
        "headers": [*headers, (b"host", b"proxy")],
        "client": (peer, 4321),
    }

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content}

    async def send(_: object) -> None: ...

    async def talk() -> None:
        await api(scope, receive, send)
        await asyncio.to_thread(api._threads.shutdown, wait=True)

    asyncio.run(talk())
    return store.snapshot(GPU).state.get("refused_code", "")


HELLO = {"gpu": GPU, "boot_id": "boot-0001"}


def test_an_agent_with_another_secret_is_noted(store: Store) -> None:
    assert refused(store, HELLO, "10.0.0.7") == "secret"
    assert store.snapshot(GPU).state["refused_peer"] == "10.0.0.7"


def test_a_stranger_is_not(store: Store) -> None:
    assert refused(store, {**HELLO, "gpu": "elsewhere"}, "10.0.0.7") == ""
    assert refused(store, {"gpu": [GPU]}, "10.0.0.7") == ""


def test_a_message_of_a_newer_agent_is_noted(store: Store) -> None:
    assert refused(store, {**HELLO, "uptime": "long"}, "10.0.0.7", SECRET) == "malformed"


def test_a_new_spec_waits_for_the_requests_of_every_proxy(store: Store) -> None:
    """Such as one with the former spec that drains beside its successor."""
    service = {"command": ["true"], "port": 1}
    config = Config.model_validate({"node_secret": SECRET, "gpu": {GPU: {"service": [service]}}})
    api = NodeApi(config, store, Metrics(), lambda _: 0)
    lock, _, _ = store.acquire(GPU, "other", 3600)
    assert lock
    bring(store, lock, Phase.READY)
    in_flight = leases.inflight("other")
    store.touch(GPU, in_flight, 30, [], actor="other", moved_ago=0.0, unanswered=0.0)

    def told() -> object:
        report = Report(gpu=GPU, boot_id="boot-one", start_seq=1, state="ready", spec_version="old")
        body = report.model_dump_json().encode()
        signed = sign_message(SECRET, "POST", REPORT_PATH, body, now=time.time())
        status, answer, _ = api.record(REPORT_PATH, body, signed)
        assert status == 200, answer
        return json.loads(answer)["spec"]

    assert told() is None
    store.touch(GPU, in_flight, 0, [], actor="other", moved_ago=0.0, unanswered=0.0)
    assert told() is not None
