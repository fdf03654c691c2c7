"""Somebody on the network sends what a node would, while a real node works: nothing may change."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from qwenctl.core.phase import Phase
from qwenctl.protocol.messages import HELLO_PATH, MAX_MESSAGE_BYTES, REPORT_PATH
from qwenctl.protocol.signing import sign_message
from tests.support.deployment import Deployment

pytestmark = pytest.mark.slow

SECONDS = 10.0
CONNECTIONS = 64


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, gpus={"main": {"idle_timeout": 300}})
    try:
        yield deployment.start()
    finally:
        deployment.close()


def message(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def attacks(deployment: Deployment) -> list[Callable[[], bytes]]:
    """Ways to make a message that must not count."""
    secret = deployment.config.read_node_secret()
    snapshot = deployment.store.snapshot("main")
    boot, seq = snapshot.node["boot_id"], snapshot.start_seq

    def report(**changes: object) -> bytes:
        content = {"gpu": "main", "boot_id": boot, "start_seq": seq, "state": "failed"}
        return json.dumps({**content, **changes}).encode()

    def signed(body: bytes, key: str = secret, skew: float = 0.0) -> bytes:
        headers = sign_message(key, "POST", REPORT_PATH, body, now=time.time() + skew)
        return message(REPORT_PATH, body, headers)

    captured = signed(report(start_seq=seq - 1))
    large = b"{" + b" " * MAX_MESSAGE_BYTES
    return [
        lambda: message(REPORT_PATH, report(), {}),
        lambda: signed(report(), key="guessed"),
        lambda: signed(report(), skew=-3600),
        lambda: captured,
        lambda: signed(report(boot_id=secrets.token_hex(8))),
        lambda: message(HELLO_PATH, b"{", {"X-Qwenctl-Nonce": "n" * 20}),
        lambda: message(REPORT_PATH, large, {}),
    ]


async def flood(address: tuple[str, int], makers: list[Callable[[], bytes]]) -> Counter[int]:
    """As many messages as go through in `SECONDS`; how many got which status."""
    answers: Counter[int] = Counter()
    end = time.monotonic() + SECONDS

    async def one(number: int) -> None:
        while time.monotonic() < end:
            try:
                reader, writer = await asyncio.open_connection(*address)
                while time.monotonic() < end:
                    # Large ones are rare, or they would be all there is.
                    number += 1
                    maker = makers[number % (len(makers) - 1)] if number % 100 else makers[-1]
                    writer.write(maker())
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
                    answers[int(head.split()[1])] += 1
                    length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
                    await reader.readexactly(int(length or 0))
                    if b"connection: close" in head.lower():
                        break
                writer.close()
            except (OSError, asyncio.IncompleteReadError):
                answers[0] += 1

    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    return answers


def test_a_flood_of_bad_messages_changes_nothing(deployment: Deployment) -> None:
    proxy = deployment.proxies[0]
    proxy.wake()
    deployment.wait_phase(Phase.READY)
    before = deployment.store.snapshot("main")
    events = deployment.last_event()
    process = psutil.Process(proxy.pid)
    host, _, port = proxy.url.removeprefix("http://").partition(":")
    asyncio.run(flood((host, int(port)), attacks(deployment)[:2]))  # warm
    memory, log = process.memory_info().rss, len(proxy.log)

    answers = asyncio.run(flood((host, int(port)), attacks(deployment)))

    print(f"{sum(answers.values()) / SECONDS:.0f} messages a second: {dict(answers)}")
    assert set(answers) - {0} <= {400, 401, 404, 409, 413, 429}
    assert sum(answers.values()) > 1000
    after = deployment.store.snapshot("main")
    assert (after.phase, after.start_seq) == (Phase.READY, before.start_seq)
    assert after.node["boot_id"] == before.node["boot_id"]
    assert after.leases == before.leases
    kinds = {event.kind for event in deployment.store.events("main", 100) if event.id > events}
    assert not kinds & {"transition", "hello", "node", "interruption"}
    assert process.memory_info().rss - memory < 30 << 20
    assert len(proxy.log) - log < 20_000
    # The real node was heard all the time, and people were served.
    assert after.now - float(after.node["seen_at"]) / 1000 < 10
    assert requests.get(proxy.url, timeout=10).ok
