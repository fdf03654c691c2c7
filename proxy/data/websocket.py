"""Forward WebSocket messages between client and node until either side closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from ..http.request import Receive, Request, Scope, Send
from ..http.websocket_server import MAX_MESSAGE
from .forward import Forwarder, NotConnected, Redirected, node_url
from .headers import request_headers
from .link import Link, Silence

HANDSHAKE = 30.0
"""How long the node may take to answer a handshake, in seconds."""

GOING_AWAY = 1001
ABNORMAL = 1011
"""The close code for a node's connection that broke without a close frame (RFC 6455 §7.4)."""


async def forward_websocket(
    forwarder: Forwarder,
    base: str,
    request: Request,
    scope: Scope,
    receive: Receive,
    send: Send,
    on_message: Callable[[], None],
    link: Link | None = None,
    on_answer: Callable[[str | bytes], None] | None = None,
) -> None:
    """Connect to the node with the client's subprotocols; accept with the node's choice.

    ``on_message`` is called for each data message in either direction, and not for pings; ``link``
    is told of the bytes that pass, and ``on_answer`` of each data message of the node.

    Raises:
        NotConnected: the node refuses the connection or the handshake; nothing was accepted.
    """
    link = link or Link(Silence())
    link.asked()
    try:
        node = await asyncio.wait_for(
            forwarder.websockets.ws_connect(
                node_url(base, request),
                protocols=tuple(scope.get("subprotocols") or ()),
                headers=request_headers(request),
                autoclose=False,
                max_msg_size=MAX_MESSAGE,
                compress=0,
            ),
            HANDSHAKE,
        )
    except Redirected:
        await _refuse(scope, send, 502)
        return
    except aiohttp.WSServerHandshakeError as error:
        # An HTTP answer to a handshake is a failure, whatever its status.
        await _refuse(scope, send, error.status if 400 <= error.status <= 599 else 502)
        return
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        raise NotConnected(str(error) or "the handshake took too long") from None
    link.heard()
    async with node:
        await receive()  # websocket.connect
        await send({"type": "websocket.accept", "subprotocol": node.protocol})
        pumps = (
            asyncio.ensure_future(_from_client(node, receive, on_message, link)),
            asyncio.ensure_future(_from_node(node, send, on_message, link, on_answer or _nothing)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if pumps[0].done() and pumps[0].exception() is not None:
                await send({"type": "websocket.close", "code": ABNORMAL, "reason": "upstream lost"})
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _from_client(
    node: aiohttp.ClientWebSocketResponse[bool],
    receive: Receive,
    on_message: Callable[[], None],
    link: Link,
) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = int(message.get("code") or GOING_AWAY)
            # 1005 and 1006 mean "no frame" and must not be sent (RFC 6455 §7.4.1).
            await node.close(code=GOING_AWAY if code in (1005, 1006) else code)
            return
        on_message()
        link.asked()
        if (text := message.get("text")) is not None:
            await node.send_str(text)
        else:
            await node.send_bytes(message.get("bytes") or b"")
        link.sent()


async def _from_node(
    node: aiohttp.ClientWebSocketResponse[bool],
    send: Send,
    on_message: Callable[[], None],
    link: Link,
    on_answer: Callable[[str | bytes], None],
) -> None:
    while True:
        message = await node.receive()
        link.heard()
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            on_answer(message.data)
        if message.type is aiohttp.WSMsgType.TEXT:
            on_message()
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            on_message()
            await send({"type": "websocket.send", "bytes": message.data})
        elif message.type is aiohttp.WSMsgType.CLOSE:
            code = int(message.data or 1000)
            await send(
                {"type": "websocket.close", "code": code, "reason": str(message.extra or "")}
            )
            return
        elif isinstance(message.data, aiohttp.WebSocketError):  # such as a message too large
            code = int(message.data.code)
            await send({"type": "websocket.close", "code": code, "reason": "the node's message"})
            return
        else:  # CLOSED, CLOSING, ERROR: it broke off
            await send({"type": "websocket.close", "code": ABNORMAL, "reason": "upstream lost"})
            return


def _nothing(_: str | bytes) -> None:
    pass


async def _refuse(scope: Scope, send: Send, status: int) -> None:
    if "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": status, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": 1013})
