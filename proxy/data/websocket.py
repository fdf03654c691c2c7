"""Forward WebSocket messages between client and node until either side closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import aiohttp

from ..http.problem import refuse_websocket
from ..http.request import Receive, Request, Scope, Send
from ..http.websocket_server import MAX_MESSAGE
from .forward import BadAnswer, Forwarder, NotConnected, fault, node_url
from .handshake import HandshakeRefused
from .headers import request_headers, response_headers
from .link import Link, Silence

HANDSHAKE = 30.0
"""How long the node may take to answer a handshake, in seconds."""

_OUR_HANDSHAKE = (
    b"sec-websocket-accept",
    b"sec-websocket-protocol",
    b"sec-websocket-extensions",
)
"""What the server in front says for itself."""

GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_FRAME = 1006
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
        NotConnected: the node refuses the connection; nothing was accepted.
        BadAnswer: the head of its answer is too large.
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
    except HandshakeRefused as refusal:
        await _refuse(scope, send, refusal)
        return
    except aiohttp.WSServerHandshakeError as error:
        detail = f"the node's answer to the handshake is invalid: {error.message}"
        await refuse_websocket(scope, send, 502, "bad_answer", detail)
        return
    except aiohttp.ClientResponseError as error:
        raise BadAnswer(fault(error)) from None
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        raise NotConnected(str(error) or "the handshake took too long") from None
    link.heard()
    async with node:
        await receive()  # websocket.connect
        await send(
            {
                "type": "websocket.accept",
                "subprotocol": node.protocol,
                "headers": _passed(node._response.raw_headers, 101),
            }
        )
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
            reason = str(message.get("reason") or "").encode()
            await node.close(code=GOING_AWAY if code in (1005, 1006) else code, message=reason)
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
            code, reason = int(message.data or 1000), str(message.extra or "")
            if code == NO_FRAME or code >= 5000:  # aiohttp lets these pass (RFC 6455 §7.4)
                code, reason = PROTOCOL_ERROR, "the node's message"
            await send({"type": "websocket.close", "code": code, "reason": reason})
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


def _passed(raw: Iterable[tuple[bytes, bytes]], status: int) -> list[tuple[bytes, bytes]]:
    """Return the headers of a handshake's answer that are not about the node's own connection."""
    ours = (b"content-length", *_OUR_HANDSHAKE)
    return [pair for pair in response_headers(raw, status) if pair[0] not in ours]


async def _refuse(scope: Scope, send: Send, refusal: HandshakeRefused) -> None:
    """Pass the node's refusal on. Of other answers, a redirect too, the client gets a 502."""
    if not 400 <= refusal.status <= 599:
        await refuse_websocket(scope, send, 502, "bad_answer", str(refusal))
    elif "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013})
    else:
        start = {"status": refusal.status, "headers": _passed(refusal.headers, refusal.status)}
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": refusal.body})
