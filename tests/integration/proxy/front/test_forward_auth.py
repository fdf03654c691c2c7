"""The forward-auth endpoint, asked without a reverse proxy."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from proxy.front.forward_auth import ForwardAuth
from proxy.http.request import Message, networks
from qwenctl.config.deployment import Config
from qwenctl.core.phase import Phase
from qwenctl.core.status import node_url
from qwenctl.store.store import Store
from tests.integration.proxy.parts import (
    FORM,
    JSON,
    SECRET,
    FaultyStore,
    Parts,
    into,
    leaving,
    made_services,
    nothing_more,
    parts,
    scope,
)
from tests.simulation.life import Life
from tests.simulation.puppets import GPU


async def gate(made: Parts, peer: str = "127.0.0.1", **headers: str) -> int:
    sent: list[Message] = []
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = scope(path="/_qwenctl/gate", headers=named, peer=peer)
    await made.gate(request, nothing_more, into(sent))
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
        gate = ForwardAuth(made_services(config, store))
        headers = {"x-qwenctl-tier": "fast"}
        request = scope(path="/_qwenctl/gate", headers=headers, peer=peer)
        await gate(request, nothing_more, into(sent))
        return str(json.loads(sent[1]["body"])["code"])

    assert asyncio.run(ask("192.0.2.8")) == "not_trusted"
    assert asyncio.run(ask("127.0.0.1")) == "unknown_tier"


def test_what_a_proxy_passes_on_is_not_asked_by_it(faulty: FaultyStore, life: Life) -> None:
    """A visitor's own request for the gate, which would tell the node's address."""
    life.wake()

    async def go() -> None:
        async with parts(faulty, networks(["192.0.2.7"])) as made:
            visitor = {"x-forwarded-for": "198.51.100.9"}
            assert await gate(made, **visitor) == 404
            assert await gate(made, "192.0.2.7") == 404
            assert await gate(made, "192.0.2.7", **visitor) == 404
            asked = {**visitor, "x-original-uri": "/x"}
            assert await gate(made, **asked) == 204
            assert await gate(made, "192.0.2.7", **asked) == 204
            twice = {**asked, "x-original-method": "GET, POST"}
            assert await gate(made, **twice) == 403
            odd = {**asked, "x-original-uri": "/x%00"}
            assert await gate(made, **odd) == 403

    asyncio.run(go())


def test_a_node_with_an_ipv6_address(faulty: FaultyStore, life: Life) -> None:
    """Whoever is in front, or we ourselves, get a URL of it (RFC 3986 §3.2.2)."""
    life.wake()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="by IPv6")

    async def go() -> None:
        async with parts(faulty, address="::1") as made:
            sent: list[Message] = []
            await made.gate(scope(path="/_qwenctl/gate"), nothing_more, into(sent))
            port = made.config.gpu[GPU].port
            assert dict(sent[0]["headers"])[b"x-qwenctl-node"] == f"[::1]:{port}".encode()
            assert node_url(life.now, made.config.gpu[GPU]) == f"http://[::1]:{port}"
            runner = web.ServerRunner(web.Server(answer))
            await runner.setup()
            await web.TCPSite(runner, "::1", port).start()
            sent.clear()
            await made.data(scope(), nothing_more, into(sent))
            assert (sent[0]["status"], sent[1]["body"]) == (200, b"by IPv6")
            await runner.cleanup()

    asyncio.run(go())


def test_the_gate_without_any_gpu(store: Store) -> None:
    config = Config.model_validate({"node_secret": SECRET})

    async def ask() -> int:
        sent: list[Message] = []
        gate = ForwardAuth(made_services(config, store))
        await gate(scope(path="/_qwenctl/gate"), nothing_more, into(sent))
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
    life.clock.advance(5)

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
    life.clock.advance(5)
    life.controller.step()
    assert life.now.phase is Phase.STOPPING

    async def go() -> int:
        async with parts(faulty) as made:
            made.know(old)
            headers = {"x-original-method": "POST", "x-original-uri": "/x", **FORM}
            return await gate(made, **headers)

    assert asyncio.run(go()) == 403
    assert "inflight:me" not in life.leases


@pytest.mark.parametrize(
    ("gpus", "meant"),
    [({}, b"503"), ({"a": {"tier": "speed"}, "b": {"tier": "quality"}}, b"400")],
    ids=["no GPU", "unknown tier"],
)
def test_each_refusal_is_one_that_nginx_carries(
    store: Store, gpus: dict[str, dict[str, str]], meant: bytes
) -> None:
    config = Config.model_validate({"node_secret": SECRET, "gpu": gpus})

    async def ask(headers: dict[str, str]) -> Message:
        sent: list[Message] = []
        gate = ForwardAuth(made_services(config, store))
        request = scope(path="/_qwenctl/gate", headers=headers)
        await gate(request, nothing_more, into(sent))
        return sent[0]

    tier = {"x-qwenctl-tier": "fast"}
    answer = asyncio.run(ask({**tier, "x-original-uri": "/x"}))
    assert (answer["status"], dict(answer["headers"])[b"x-qwenctl-status"]) == (403, meant)
    assert asyncio.run(ask(tier))["status"] == int(meant)  # it is no other data plane that asks
