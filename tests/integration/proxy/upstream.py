"""A small WebUI that says exactly what it has received, and misbehaves on request.

``python upstream.py PORT``. Every path that is not listed in `PAGES` is answered with an echo of the
request. ``/journal`` tells what has happened so far; tests read it past the proxy.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import WSMsgType, web

JOURNAL: list[dict[str, Any]] = []
CHUNK = bytes(range(256)) * 256  # 64 KiB

Page = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    digest, size = hashlib.sha256(), 0
    async for chunk in request.content.iter_chunked(1 << 18):
        digest.update(chunk)
        size += len(chunk)
        JOURNAL[-1]["received"] = size
    transport = request.transport
    assert transport is not None
    content = {
        "method": request.method,
        "target": request.raw_path,
        "headers": [
            [name.decode(), value.decode("latin-1")] for name, value in request.raw_headers
        ],
        "size": size,
        "sha256": digest.hexdigest(),
        "connection": transport.get_extra_info("peername")[1],
    }
    return web.json_response(content)


async def journal(request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response(JOURNAL)


async def blob(request: web.BaseRequest) -> web.StreamResponse:
    """``size`` bytes, with Content-Length unless ``chunked``."""
    size = int(request.query["size"])
    answer = web.StreamResponse()
    if "chunked" not in request.query:
        answer.content_length = size
    await answer.prepare(request)
    while size and request.method != "HEAD":
        piece = CHUNK[:size]
        await answer.write(piece)
        size -= len(piece)
        JOURNAL[-1]["left"] = size
    await answer.write_eof()
    return answer


async def events(request: web.BaseRequest) -> web.StreamResponse:
    """One event each time somebody asks ``/next``."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for number in range(int(request.query.get("count", "1000000"))):
        await answer.write(f"data: {number}\n\n".encode())
        await NEXT.acquire()
    await answer.write_eof()
    return answer


async def chat(request: web.BaseRequest) -> web.StreamResponse:
    """A chat completion as an OpenAI-compatible server answers it, streamed if the body asks so."""
    asked = await request.read()
    body = json.loads(asked)
    if body["model"] == "missing":
        error = {"message": "no such model", "type": "NotFoundError", "param": None, "code": 404}
        return web.json_response({"error": error}, status=404)
    if body["model"] == "dies":
        assert request.transport is not None
        request.transport.close()
        await asyncio.sleep(60)
    kind = "chat.completion"
    known = {"id": "c", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}}
        return web.json_response({**known, "object": kind, "choices": [choice]})
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await answer.prepare(request)
    for word in ("hel", "lo"):
        choice = {"index": 0, "delta": {"content": word}}
        chunk = {**known, "object": f"{kind}.chunk", "choices": [choice]}
        await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await answer.write(b"data: [DONE]\n\n")
    await answer.write_eof()
    return answer


async def next_event(request: web.BaseRequest) -> web.StreamResponse:
    NEXT.release()
    return web.Response(status=204)


async def long_poll(request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(float(request.query.get("seconds", "60")))
    return web.Response(text="too late")


async def status(request: web.BaseRequest) -> web.StreamResponse:
    code = int(request.query["code"])
    headers = {"ETag": '"7"', "X-Kept": "yes"}
    if code == 304 and "length" in request.query:
        return await raw(
            request, b'HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: "7"\r\n\r\n'
        )
    return web.Response(status=code, headers=headers)


async def every_site(request: web.BaseRequest) -> web.StreamResponse:
    """As vLLM answers, which lets pages of every site in."""
    headers = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "true"}
    return web.Response(headers=headers)


async def models(request: web.BaseRequest) -> web.StreamResponse:
    """The models that are named on the command line, as vLLM lists them, or half an answer."""
    if "half" in request.query:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        return await raw(request, head, close=True)
    data = [
        {"id": name, "object": "model", "created": 7, "owned_by": "vllm", "permission": [{}]}
        for name in sys.argv[2:]
    ]
    content = {"object": "list", "data": data}
    if "gzip" not in request.headers.get("Accept-Encoding", ""):
        return web.json_response(content)
    body = gzip.compress(json.dumps(content).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    return web.Response(body=body, headers=headers)


async def cookies(request: web.BaseRequest) -> web.StreamResponse:
    answer = web.Response(text="cookies")
    for value in ("a=1; Path=/", "b=2; HttpOnly", "a=3; Path=/x"):
        answer.headers.add("Set-Cookie", value)
    for value in ("one", "two"):
        answer.headers.add("X-Twice", value)
    return answer


async def large_header(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(headers={"X-Large": "x" * int(request.query["size"])})


async def hop_by_hop(request: web.BaseRequest) -> web.StreamResponse:
    return await raw(
        request,
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nKeep-Alive: timeout=3\r\n"
        b"X-Private: secret\r\nProxy-Authenticate: Basic\r\nX-Public: seen\r\n"
        b"Content-Length: 2\r\n\r\nok",
    )


async def hints(request: web.BaseRequest) -> web.StreamResponse:
    return await raw(
        request,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
    )


async def close_delimited(request: web.BaseRequest) -> web.StreamResponse:
    return await raw(request, b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100_000, close=True)


async def zipped(request: web.BaseRequest) -> web.StreamResponse:
    body = gzip.compress(b"packed " * 1000, mtime=0)
    return web.Response(body=body, headers={"Content-Encoding": "gzip"})


async def too_large(request: web.BaseRequest) -> web.StreamResponse:
    """413 before the body has been read."""
    return await raw(
        request,
        b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large",
        close=True,
    )


async def redirect(request: web.BaseRequest) -> web.StreamResponse:
    location = request.query.get("to", "https://example.org/else?x=%20")
    return web.Response(status=302, headers={"Location": location})


async def die(request: web.BaseRequest) -> web.StreamResponse:
    """Break the connection: before the answer, or in the middle of one."""
    transport = request.transport
    assert transport is not None
    how = request.query["when"]
    if how == "middle":
        transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    elif how == "middle-length":
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello")
    elif how == "short":
        transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    await asyncio.sleep(0.1)
    transport.close()
    await asyncio.sleep(60)
    raise AssertionError


async def raw(
    request: web.BaseRequest, content: bytes, *, close: bool = False
) -> web.StreamResponse:
    """Write an answer byte by byte as it is, past the server's own ideas."""
    transport = request.transport
    assert transport is not None
    transport.write(content)
    await asyncio.sleep(0.05)
    if close:
        transport.close()
    else:
        await asyncio.sleep(0.3)
        transport.close()
    await asyncio.sleep(60)
    raise AssertionError


async def bytes_of(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with the bytes of ``hex``."""
    return await raw(request, bytes.fromhex(request.query["hex"]), close=True)


ENDLESS = {
    "lines": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "a line": (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
    "a status": (b"HTTP/1.1 200 ", b"a"),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n",
        b"X-A: b\r\n",
    ),
    "an extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"a"),
}
"""The beginnings of answers, and what follows without end."""


async def endless(request: web.BaseRequest) -> web.StreamResponse:
    start, piece = ENDLESS[request.query["part"]]
    transport = request.transport
    assert isinstance(transport, asyncio.WriteTransport)
    transport.write(start)
    while not transport.is_closing():
        if transport.get_write_buffer_size() < 1 << 20:
            transport.write(piece * (65536 // len(piece)))
        await asyncio.sleep(0)
    raise ConnectionResetError


async def stop_listening(request: web.BaseRequest) -> web.StreamResponse:
    """Close the port, and this connection; the program goes on."""
    server = SITES[0]._server
    assert server is not None
    server.close()
    answer = web.Response(status=204)
    answer.force_close()
    return answer


async def websocket(request: web.BaseRequest) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("chat.v2", "chat.v1"), max_msg_size=0, compress=False)
    if "cookies" in request.query:
        for value in ("a=1; Path=/", "b=2; HttpOnly"):
            socket.headers.add("Set-Cookie", value)
        socket.headers["X-Served-By"] = "worker 7"
    await socket.prepare(request)
    entry = JOURNAL[-1]
    entry["headers"] = {name.lower(): value for name, value in request.headers.items()}
    while (message := await socket.receive()).type in (WSMsgType.TEXT, WSMsgType.BINARY):
        if message.type is WSMsgType.TEXT and message.data.startswith("close "):
            await socket.close(code=int(message.data.split()[1]), message=b"as asked")
        elif message.type is WSMsgType.TEXT and message.data.startswith("send "):
            await socket.send_bytes(bytes(int(message.data.split()[1])))
        elif message.type is WSMsgType.TEXT and message.data == "abort":
            assert request.transport is not None
            request.transport.abort()
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    entry["closed_with"] = socket.close_code
    entry["reason"] = message.extra
    return socket


async def denied_websocket(request: web.BaseRequest) -> web.StreamResponse:
    """401 with headers; its body has a length, is chunked, or ends never, by ``body``."""
    head = (
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=ui\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nX-Text: caf\xe9\r\nContent-Type: application/json\r\n"
    )
    bodies = {
        "length": b'Content-Length: 12\r\n\r\n{"who": "m"}',
        "chunked": b'Transfer-Encoding: chunked\r\n\r\nc\r\n{"who": "m"}\r\n0\r\n\r\n',
        "none": b"Content-Length: 0\r\n\r\n",
    }
    return await raw(request, head + bodies[request.query["body"]])


async def odd_handshake(request: web.BaseRequest) -> web.StreamResponse:
    """101 with several options of Connection, and a close frame at once (RFC 6455)."""
    key = request.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode()).digest())
    return await raw(
        request,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive, Upgrade\r\n"
        b"Upgrade: WebSocket\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        b"\x88\x05" + (4000).to_bytes(2, "big") + b"bye",
    )


async def odd_head(request: web.BaseRequest) -> web.StreamResponse:
    """An answer with ``lines`` further headers, of ``size`` bytes each."""
    lines, size = int(request.query.get("lines", 1)), int(request.query.get("size", 1))
    return await raw(
        request,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
        + b"".join(b"X-%d: %s\r\n" % (number, b"a" * size) for number in range(lines))
        + b"\r\nok",
    )


async def refuse_websocket(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=403, text="not you")


PAGES: dict[str, Page] = {
    "/journal": journal,
    "/blob": blob,
    "/events": events,
    "/openai/v1/chat/completions": chat,
    "/next": next_event,
    "/long-poll": long_poll,
    "/status": status,
    "/cookies": cookies,
    "/large-header": large_header,
    "/hop-by-hop": hop_by_hop,
    "/hints": hints,
    "/close-delimited": close_delimited,
    "/gzip": zipped,
    "/too-large": too_large,
    "/redirect": redirect,
    "/die": die,
    "/endless": endless,
    "/bytes": bytes_of,
    "/stop-listening": stop_listening,
    "/v1/every-site": every_site,
    "/v1/models": models,
    "/ws": websocket,
    "/ws-refused": refuse_websocket,
    "/ws-denied": denied_websocket,
    "/ws-odd": odd_handshake,
    "/odd-head": odd_head,
}

NEXT = asyncio.Semaphore(0)
SITES: list[web.TCPSite] = []


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    page = PAGES.get(request.path, echo)
    if page is journal:
        return await page(request)
    JOURNAL.append({"method": request.method, "target": request.raw_path, "end": ""})
    entry = JOURNAL[-1]
    try:
        result = await page(request)
    except asyncio.CancelledError:
        entry["end"] = "cancelled"
        raise
    except Exception as error:
        entry["end"] = repr(error)
        raise
    entry["end"] = "done"
    return result


async def main(port: int) -> None:
    server = web.Server(answer, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    SITES.append(site)
    await site.start()
    print(json.dumps({"listening": port}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
