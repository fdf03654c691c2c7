"""Stream an HTTP request to the node and its answer back, holding neither in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
from aiohttp import client_reqrep
from aiohttp.abc import AbstractStreamWriter
from aiohttp.connector import Connection
from aiohttp.http_writer import StreamWriter
from multidict import CIMultiDict
from yarl import URL

from ..http.connections import probe_peer
from ..http.request import Receive, Request, Send
from .handshake import Response
from .headers import request_headers, response_headers
from .link import Link, Silence

SWEEP = 0.25
"""How often requests older than this get a task that watches for a disconnect, in seconds. Nearly
all requests have ended by then and are spared the cost."""

HEADERS_ALONE = 0.05
"""How long a request's headers wait for the first piece of the body, in seconds, to be sent
together."""

KEEP_ALIVE = 4.0
"""How long an idle connection to the node is kept, in seconds: less than the 5 s after which
uvicorn, under Gradio and vLLM, closes it, so that no request meets a closing connection."""

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Idempotent methods, which may be sent again (RFC 9110 §9.2.2)."""

TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0)

MAX_LINE = 64 * 1024
"""The longest header that a node may send, in bytes."""

MAX_FIELDS = 512
"""The most header lines of a node's answer."""

READ_BUFFER = 64 * 1024
"""How much of an answer is read before the client has taken it, in bytes: half of what aiohttp
holds, beside one read of up to 256 KiB."""


class NotConnected(Exception):
    """The node refuses connections; nothing of the request has been sent or read."""


class UpstreamDied(Exception):
    """The node's connection broke. ``started``: the client already has a part of the answer."""

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class BadAnswer(Exception):
    """The node's answer cannot be passed on; the message says why. The client has nothing of it."""


class ClientGone(Exception):
    """The client disconnected; the node's connection has been closed."""


_NO_CONTENT_TYPE: CIMultiDict[None] = CIMultiDict([("Content-Type", None)])


class _PlainRequest(aiohttp.ClientRequest):
    """Send the client's headers and none of aiohttp's own (Accept, User-Agent, …)."""

    DEFAULT_HEADERS = {}  # noqa: RUF012 - aiohttp's own attribute

    def update_headers(self, headers: Any) -> None:
        self.headers = headers if isinstance(headers, CIMultiDict) else CIMultiDict(headers)
        if "Host" not in self.headers:  # HTTP/1.0
            self.headers["Host"] = self.url.host_port_subcomponent or ""

    def update_auto_headers(self, skip_auto_headers: object) -> None:  # noqa: ARG002
        # Add nothing here, and later no Content-Type to a body that was sent without.
        self._skip_auto_headers = _NO_CONTENT_TYPE

    async def write_bytes(
        self,
        writer: AbstractStreamWriter,
        conn: Connection,
        content_length: int | None = None,
    ) -> None:
        # aiohttp sends the headers together with the first piece of the body. The node must get
        # them too when the client waits for its answer before it sends the body.
        timer = asyncio.get_running_loop().call_later(HEADERS_ALONE, writer.send_headers)
        try:
            await super().write_bytes(writer, conn, content_length)
        finally:
            timer.cancel()


class _Writer(StreamWriter):
    """Writes header values as the bytes that they were: aiohttp leaves out what is no UTF-8."""

    async def write_headers(self, status_line: str, headers: CIMultiDict[str]) -> None:
        await super().write_headers(status_line, headers)
        if not all(map(str.isascii, headers.values())):
            lines = (status_line, *(f"{name}: {value}" for name, value in headers.items()), "\r\n")
            self._headers_buf = "\r\n".join(lines).encode("utf-8", "surrogateescape")


vars(client_reqrep)["StreamWriter"] = _Writer  # there is no other way to have it used


def node_url(base: str, request: Request) -> URL:
    """Return the request's target at the node, byte for byte.

    A target that does not begin with a slash (``*@other-host/…``) would change the host that it is
    appended to. The router refuses such targets; this check is a second line.
    """
    if not request.target.startswith("/"):
        raise ValueError("the target is no path")
    return URL(base + request.target, encoded=True)


class Forwarder:
    """A pool of connections to the nodes."""

    def __init__(self) -> None:
        self._connector: aiohttp.TCPConnector | None = None
        self._websockets: aiohttp.ClientSession | None = None
        self._watches: set[_ClientWatch] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE, socket_factory=_connection
        )
        self._websockets = aiohttp.ClientSession(
            connector=self._connector,
            timeout=TIMEOUT,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=_PlainRequest,
            response_class=Response,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_FIELDS,
            read_bufsize=READ_BUFFER,
        )
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        if self._sweeper:
            self._sweeper.cancel()
        if self._websockets:
            await self._websockets.close()

    @property
    def websockets(self) -> aiohttp.ClientSession:
        """Return the session for WebSocket handshakes; it raises `HandshakeRefused`."""
        assert self._websockets is not None, "start() was not awaited"
        return self._websockets

    async def answers(self, base: str, path: str, seconds: float) -> bool:
        """Return whether the node at ``base`` answers a GET in time, with a status below 400."""
        try:
            async with self._get(base, "/" + path.lstrip("/"), seconds) as answer:
                return answer.status < 400
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError):
            return False

    async def fetch(self, base: str, path: str, seconds: float, limit: int) -> bytes:
        """Return what the node at ``base`` answers to a GET; empty unless it is 200 and short."""
        try:
            async with self._get(base, path, seconds) as answer:
                body = b""
                async for piece in answer.content.iter_any():
                    body += piece
                    if len(body) > limit:
                        return b""
                return body if answer.status == 200 else b""
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError):
            return b""

    def _get(
        self, base: str, path: str, seconds: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Ask the node something of our own, on a connection of its own."""
        return self.websockets.get(
            URL(base + path),
            headers={"Connection": "close"},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=seconds),
        )

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            for watch in self._watches:
                watch.grow_older()

    async def __call__(
        self,
        base: str,
        request: Request,
        receive: Receive,
        send: Send,
        link: Link | None = None,
    ) -> int:
        """Forward a request to the node at ``base`` (``http://host:port``); return the status.

        ``link`` is told of the bytes that pass.

        Raises:
            NotConnected: the request is intact and can be sent elsewhere or later.
            UpstreamDied: the request may have had effects, or its answer has begun.
            BadAnswer: the node's answer is no HTTP, or its head is too large.
            ClientGone: the client disconnected.
        """
        link = link or Link(Silence())
        body = _Body(receive, link) if _has_body(request) else None
        if body is None:
            link.asked()
        watch = _ClientWatch(body, receive)
        self._watches.add(watch)
        try:
            return await self._exchange(base, request, body, send, link)
        except asyncio.CancelledError:
            if not watch.hung_up:
                raise
            raise ClientGone from None
        finally:
            self._watches.discard(watch)
            watch.stop()

    async def _ask(self, base: str, request: Request, body: _Body | None) -> aiohttp.ClientResponse:
        """Send the request; return the answer once its head has been read.

        Does as `ClientSession.request`, without redirects, cookies, proxies, credentials in URLs
        and middlewares. A forwarder must not have them, and they are a tenth of a request's time.
        """
        assert self._connector is not None, "start() was not awaited"
        url, headers = node_url(base, request), request_headers(request)
        chunked = True if body and "content-length" not in request.headers else None
        again = body is None and request.method in IDEMPOTENT
        while True:
            asked = _PlainRequest(
                request.method,
                url,
                headers=headers,
                data=body,
                chunked=chunked,
                loop=self._loop,
            )
            try:
                connection = await self._connector.connect(asked, traces=[], timeout=TIMEOUT)
            except asyncio.TimeoutError:
                raise NotConnected(f"no connection within {TIMEOUT.sock_connect} s") from None
            try:
                assert connection.protocol is not None
                connection.protocol.set_response_params(
                    skip_payload=request.method == "HEAD",
                    read_until_eof=True,
                    auto_decompress=False,
                    read_bufsize=READ_BUFFER,
                    max_line_size=MAX_LINE,
                    max_field_size=MAX_LINE,
                    max_headers=MAX_FIELDS,
                )
                answer = await asked.send(connection)
                try:
                    return await answer.start(connection)
                except BaseException:
                    answer.close()
                    raise
            except (OSError, aiohttp.ServerDisconnectedError):
                # The node may close an idle connection at the moment it is used.
                connection.close()
                if not again:
                    raise
                again = False
            except BaseException:
                connection.close()
                raise

    async def _exchange(
        self, base: str, request: Request, body: _Body | None, send: Send, link: Link
    ) -> int:
        started = False
        try:
            async with await self._ask(base, request, body) as answer:
                if not 200 <= answer.status <= 599:  # a server error, by RFC 9110 §15; or 101
                    raise UpstreamDied(f"its status is {answer.status}", started=False)
                started = True
                link.heard()
                await send(
                    {
                        "type": "http.response.start",
                        "status": answer.status,
                        "headers": response_headers(answer.raw_headers, answer.status),
                    }
                )
                stream = answer.content
                more = True
                while more:
                    if chunk := await stream.readany():
                        link.heard()
                    more = not stream.at_eof()
                    await send({"type": "http.response.body", "body": chunk, "more_body": more})
                return answer.status
        except aiohttp.ClientConnectorError as error:
            raise NotConnected(str(error.os_error or error)) from None
        except _Hangup:
            raise ClientGone from None
        except aiohttp.ClientResponseError as error:
            raise BadAnswer(fault(error)) from None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            if isinstance(error.__cause__, _Hangup) or (body and body.hung_up):
                raise ClientGone from None
            raise UpstreamDied(str(error) or type(error).__name__, started=started) from None


def fault(error: aiohttp.ClientResponseError) -> str:
    """Return why an answer's head was not taken, without any of its content."""
    if "Got more than" in error.message:
        return f"a header of the node's answer is larger than {MAX_LINE // 1024} KiB"
    if "Too many headers" in error.message:
        return f"the node's answer has more than {MAX_FIELDS} headers"
    return "the node's answer is no valid HTTP"


def _connection(address: Sequence[Any]) -> socket.socket:
    """Make a socket for a connection to a node, from an entry of `socket.getaddrinfo`."""
    connection = socket.socket(*address[:3])
    probe_peer(connection)
    return connection


class _Hangup(Exception):
    pass


class _Body:
    """The request's body as it arrives; it is read no faster than the node takes it."""

    def __init__(self, receive: Receive, link: Link) -> None:
        self._receive = receive
        self._link = link
        self.done = asyncio.Event()
        self.hung_up = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.hung_up = True
                raise _Hangup
            if chunk := message.get("body"):
                yield chunk
                self._link.sent()
            if not message.get("more_body"):
                self._link.asked()
                self.done.set()
                return


class _ClientWatch:
    """Cancel the current task when the client disconnects, so that the node stops generating."""

    __slots__ = ("_body", "_receive", "_seen", "_task", "_watcher", "hung_up")

    def __init__(self, body: _Body | None, receive: Receive) -> None:
        self.hung_up = False
        self._body, self._receive = body, receive
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._seen = False

    def grow_older(self) -> None:
        """Start to watch at the second sweep that finds the request still running."""
        if self._seen and self._watcher is None:
            self._watcher = asyncio.ensure_future(self._watch())
        self._seen = True

    async def _watch(self) -> None:
        if self._body:
            await self._body.done.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.hung_up = True
        if self._task:
            self._task.cancel()

    def stop(self) -> None:
        if self._watcher:
            self._watcher.cancel()


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get(
        "content-length", "0"
    ) not in ("0", "")
