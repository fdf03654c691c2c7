"""WebSockets through a real proxy: messages, subprotocols, close codes, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.integration.proxy.running import RunningProxy, gpu, running
from tests.support.waiting import until

MIB = 1 << 20


def talk(
    proxy: RunningProxy,
    conversation: Callable[[ClientConnection], Awaitable[None]],
    path: str = "/ws",
    *subprotocols: str,
    headers: dict[str, str] | None = None,
    host: str = "127.0.0.1",
) -> None:
    async def go() -> None:
        async with connect(
            f"ws://{host}:{proxy.port}{path}",
            host="127.0.0.1",
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            additional_headers=headers,
            max_size=None,
            proxy=None,
        ) as socket:
            await asyncio.wait_for(conversation(socket), 15)

    asyncio.run(go())


def test_text_binary_and_large_messages_both_ways(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        big = bytes(range(256)) * (5 * MIB // 256)
        for message in ("hello 你好", "", b"", b"\x00\xff", big, "é" * MIB):
            await socket.send(message)
            assert await socket.recv() == message

    talk(ready, conversation)


def test_a_fragmented_message_arrives_whole(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.send(["one ", "message ", "in three"])
        assert await socket.recv() == "one message in three"

    talk(ready, conversation)


def test_the_node_chooses_the_subprotocol(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        assert socket.subprotocol == "chat.v1"

    talk(ready, conversation, "/ws", "chat.v0", "chat.v1")


def test_no_subprotocol_where_none_was_asked_for(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        assert socket.subprotocol is None

    talk(ready, conversation)


def test_headers_of_the_handshake(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.send("x")
        await socket.recv()

    headers = {"Cookie": "theirs=1; qwenctl_session=ours", "X-Forwarded-For": "6.6.6.6"}
    talk(ready, conversation, "/ws?handshake=1", headers=headers)
    got = until(lambda: ready.journal_of("/ws?handshake=1")[-1].get("headers"))
    assert got["cookie"] == "theirs=1"
    assert got["x-forwarded-for"] == "127.0.0.1"
    assert got["host"] == f"127.0.0.1:{ready.port}"


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4321])
def test_close_code_of_the_node_reaches_the_client(ready: RunningProxy, code: int) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.send(f"close {code}")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (code, "as asked")

    talk(ready, conversation)


@pytest.mark.parametrize("code", [1005, 1006, 1015, 2999, 5000, 65535])
def test_a_close_code_that_the_node_must_not_send_is_its_error(
    ready: RunningProxy, code: int
) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.send(f"close {code}")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1002

    talk(ready, conversation)


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4321])
def test_close_code_of_the_client_reaches_the_node(ready: RunningProxy, code: int) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.close(code=code, reason="going")

    path = f"/ws?closing={code}"
    talk(ready, conversation, path)
    ended = until(lambda: ready.journal_of(path)[-1].get("closed_with"), 2.0)
    assert ended == code
    assert ready.journal_of(path)[-1]["reason"] == "going"


def test_a_client_that_vanishes_ends_the_nodes_side(ready: RunningProxy) -> None:
    path = "/ws?vanish"

    async def conversation(socket: ClientConnection) -> None:
        await socket.send("x")
        await socket.recv()
        socket.transport.abort()

    talk(ready, conversation, path)
    until(lambda: ready.journal_of(path)[-1]["end"], 1.0, "the end at the node")


def test_a_node_that_vanishes_ends_the_clients_side(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.send("abort")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 2)
        assert socket.close_code == 1011

    talk(ready, conversation)


def test_a_refused_handshake_keeps_its_status(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        raise AssertionError("accepted")

    with pytest.raises(InvalidStatus) as refused:
        talk(ready, conversation, "/ws-refused")
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("body", "content"),
    [("length", b'{"who": "m"}'), ("chunked", b'{"who": "m"}'), ("none", b"")],
)
def test_a_refused_handshake_keeps_its_headers_and_body(
    ready: RunningProxy, body: str, content: bytes
) -> None:
    async def conversation(socket: ClientConnection) -> None:
        raise AssertionError("accepted")

    with pytest.raises(InvalidStatus) as refused:
        talk(ready, conversation, f"/ws-denied?body={body}")
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Basic realm=ui"
    assert response.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    assert response.headers["X-Text"] == "caf\xe9"
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers.get_all("Content-Length") == [str(len(content))]
    assert response.body == content


def test_an_answer_that_is_no_refusal_is_a_502(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        raise AssertionError("accepted")

    for path in ("/echo", "/events"):
        with pytest.raises(InvalidStatus) as refused:
            talk(ready, conversation, path)
        assert refused.value.response.status_code == 502
        assert b"answered the handshake with 200" in (refused.value.response.body or b"")


def test_an_answer_whose_head_is_too_large_is_named(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        raise AssertionError("accepted")

    with pytest.raises(InvalidStatus) as refused:
        talk(ready, conversation, "/odd-head?size=70000")
    assert refused.value.response.status_code == 502
    assert b"larger than 64 KiB" in (refused.value.response.body or b"")


def test_headers_of_the_nodes_handshake(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        assert socket.response is not None
        headers = socket.response.headers
        assert headers.get_all("Set-Cookie") == ["a=1; Path=/", "b=2; HttpOnly"]
        assert headers["X-Served-By"] == "worker 7"
        for name in ("Upgrade", "Connection", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol"):
            assert len(headers.get_all(name)) == 1
        await socket.send("x")
        assert await socket.recv() == "x"

    talk(ready, conversation, "/ws?cookies", "chat.v1")


def test_a_handshake_whose_connection_has_several_options(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4000, "bye")

    talk(ready, conversation, "/ws-odd")


def test_a_handshake_with_a_large_head(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        await socket.send("x")
        await socket.recv()

    talk(ready, conversation, "/ws?large", headers={"Cookie": "c=" + "a" * 8186})
    got = until(lambda: ready.journal_of("/ws?large")[-1].get("headers"))
    assert len(got["cookie"]) == 8188


def test_none_of_ours_under_the_reserved_prefix(ready: RunningProxy) -> None:
    async def conversation(socket: ClientConnection) -> None:
        raise AssertionError("accepted")

    with pytest.raises(InvalidStatus) as refused:
        talk(ready, conversation, "/_qwenctl/api/events")
    assert refused.value.response.status_code == 404


def test_a_websocket_does_not_wake(tmp_path: Path) -> None:
    async def conversation(socket: ClientConnection) -> None:
        raise AssertionError("accepted")

    presets = ("gradio", "open-webui", "openai", "generic")
    gpus = {name: gpu(preset=name, hosts=[f"{name}.localhost"]) for name in presets}
    with running(tmp_path, gpu=gpus) as proxy:
        for name in presets:
            with pytest.raises(InvalidStatus) as refused:
                talk(proxy, conversation, "/ws", host=f"{name}.localhost")
            assert refused.value.response.status_code == 503
            assert b'"code": "not_ready"' in (refused.value.response.body or b"")
            assert proxy.untouched(name)
        assert "ERROR" not in proxy.log


def test_no_traceback_of_all_that(ready: RunningProxy) -> None:
    assert "Traceback" not in ready.log
