"""Whatever a client or a node sends, the log has no error: errors are our own mistakes."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.integration.proxy.running import RunningProxy, gpu, running
from tests.support.waiting import until

HOST = b"Host: 127.0.0.1\r\n"
UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n"
)
POST = b"POST /x HTTP/1.1\r\n" + HOST


def _get(path: bytes = b"/x", head: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + path + b" HTTP/" + version + b"\r\n" + HOST + head + b"\r\n"


def _frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A client's frame, masked with zeros (RFC 6455 §5.2)."""
    size = len(payload)
    short = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + struct.pack("!H", size)
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + short + bytes(4) + payload


HTTP = {
    "two bytes": b"\x81\x00",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "only line ends": b"\r\n" * 100,
    "half a head": b"GET / HTTP/1.1\r\nHost: a",
    "a control character": b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a NUL in a header": _get(head=b"X-A: a\0b\r\n"),
    "Latin-1 in the path": _get(b"/\xe4\xff"),
    "UTF-8 in a header": _get(head="X-A: ä中\r\n".encode()),
    "bad percent": _get(b"/%zz%ff%00%"),
    "a bad query": _get(b"/x?\xff=%ff&&=&;"),
    "a bad cookie": _get(head=b"Cookie: \xff=\x80; =; qwenctl_session=\xff\r\n"),
    "bad authorization": _get(head=b"Authorization: Bearer \xff\xfe\r\nX-API-Key: \xff\r\n"),
    "bad forwarded": _get(head=b'X-Forwarded-For: [::\r\nForwarded: for="\r\n'),
    "a bad length": POST + b"Content-Length: -1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    "a chunk that is too long": POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "half a body": POST + b"Content-Length: 1000\r\n\r\nhello",
    "half a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\na\r\nhel",
    "a body of a GET that stops": _get(head=b"Content-Length: 10\r\n") + b"abc",
    "an unmet expectation": POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
    "another expectation": POST + b"Expect: more\r\nContent-Length: 0\r\n\r\n",
    "pipelined and gone": _get() * 5,
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + b"\x16\x03\x01",
    "TRACE": b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n",
    "a full URL": b"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "an old version": b"GET / HTTP/0.9\r\n\r\n",
    "a new version": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/1.0": b"GET /events HTTP/1.0\r\n\r\n",
    "a long line": b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "many headers": _get(head=b"X-A: b\r\n" * 300),
    "folded lines": _get(head=b"X-A: a\r\n b\r\n"),
    "a stream that is left": _get(b"/events"),
    "a large answer that is left": _get(b"/blob?size=50000000"),
    "an answer that breaks off": _get(b"/die?when=middle"),
    "an answer that is too short": _get(b"/die?when=short"),
    "no answer": _get(b"/die?when=before"),
    "a bad range": _get(head=b"Range: bytes=-\r\n"),
    "our pages": _get(b"/_qwenctl/\xff%ff?a=%ff"),
    "our status": _get(b"/_qwenctl/api/status?gpu=%ff%00"),
    "our events": _get(b"/_qwenctl/api/events?gpu=%00"),
    "our events that are left": _get(b"/_qwenctl/api/events"),
    "our sign-in, half": b"POST /_qwenctl/login HTTP/1.1\r\n"
    + HOST
    + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\npass",
    "our sign-in, bad": b"POST /_qwenctl/login HTTP/1.1\r\n"
    + HOST
    + b"Content-Type: multipart/form-data; boundary=\r\nContent-Length: 4\r\n\r\n\xff\xff\xff\xff",
    "our wake, bad": b"POST /_qwenctl/api/wake HTTP/1.1\r\n"
    + HOST
    + b'Content-Type: application/json\r\nContent-Length: 4\r\n\r\n{"a\xff',
    "a node's message, bad": b"POST /_qwenctl/node/report HTTP/1.1\r\n"
    + HOST
    + b"X-Qwenctl-Signature: \xff\r\nX-Qwenctl-Time: \xff\r\nContent-Length: 2\r\n\r\n\xff\xff",
    "a bad gate": _get(b"/_qwenctl/gate", b"X-Original-URI: \xff\r\nX-Original-Method: \xff\r\n"),
}
"""What a client sends before it leaves."""

HANDSHAKES = {
    "no key": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "a bad key": UPGRADE.replace(b"Key: AAAA", b"Key: \xff?!,"),
    "two keys": UPGRADE + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    "an old version": UPGRADE.replace(b"Version: 13", b"Version: 7"),
    "a bad version": UPGRADE.replace(b"Version: 13", b"Version: x"),
    "many headers": UPGRADE + b"X-A: b\r\n" * 200,
    "a long header": UPGRADE + b"X-A: " + b"b" * 20_000 + b"\r\n",
    "Latin-1": UPGRADE + b"X-A: \xe4\xff\r\n",
    "bad extensions": UPGRADE + b"Sec-WebSocket-Extensions: ;;,\xff=\r\n",
    "bad subprotocols": UPGRADE + b"Sec-WebSocket-Protocol: a b,,\xff\r\n",
    "unknown subprotocols": UPGRADE + b"Sec-WebSocket-Protocol: none, other\r\n",
    "a body": UPGRADE + b"Content-Length: 5\r\n",
    "chunks": UPGRADE + b"Transfer-Encoding: chunked\r\n",
    "an origin": UPGRADE + b"Origin: \xff://\r\n",
    "upgrades": UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"),
}

FRAMES = {
    "nothing": b"",
    "two bytes, unmasked": b"\x81\x00",
    "two bytes, reserved": b"\xff\xff",
    "one byte": b"\x81",
    "bad UTF-8": _frame(1, b"\xff\xfe"),
    "bad UTF-8 in parts": _frame(1, b"\xe4", fin=False) + _frame(0, b"\xff"),
    "an unknown opcode": _frame(3, b"a"),
    "reserved bits": _frame(1, b"a", rsv=7),
    "compressed": _frame(1, b"a", rsv=4),
    "a part of nothing": _frame(0, b"a"),
    "a message in a message": _frame(1, b"a", fin=False) + _frame(2, b"b"),
    "a long ping": _frame(9, bytes(200)),
    "a ping in parts": _frame(9, b"a", fin=False),
    "a bad close": _frame(8, b"\x03"),
    "a bad code": _frame(8, struct.pack("!H", 1005)),
    "an unknown code": _frame(8, struct.pack("!H", 5000)),
    "zero as code": _frame(8, struct.pack("!H", 0)),
    "a bad reason": _frame(8, struct.pack("!H", 1000) + b"\xff\xff"),
    "after the close": _frame(8) + _frame(1, b"a") + _frame(8),
    "too long": b"\x82\xff" + struct.pack("!Q", 1 << 40) + bytes(4),
    "negative": b"\x82\xff" + struct.pack("!Q", (1 << 64) - 1) + bytes(4),
    "half a frame": _frame(2, bytes(1000))[:500],
    "many pongs": _frame(10, b"a") * 1000,
    "text for a node that aborts": _frame(1, b"abort"),
    "text for a node that closes": _frame(1, b"close 4999") + _frame(1, b"x") * 100,
    "text for a node that closes badly": _frame(1, b"close 1005"),
    "a message too long for us": _frame(1, b"send 17000000"),
    "an HTTP request": _get(),
}


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "nonsense": b"\xff\xfe\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n",
    "an unknown status": b"HTTP/1.1 799 X\r\nContent-Length: 0\r\n\r\n",
    "a known status of no class": b"HTTP/1.1 600 X\r\nContent-Length: 0\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
    "an unasked 101": b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
    "an unknown 1xx": b"HTTP/1.1 199 X\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "a control character": OK + b"X-A: a\x01b\x7f\r\nContent-Length: 0\r\n\r\n",
    "a bad name": OK + b"X A: a\r\nContent-Length: 0\r\n\r\n",
    "a name of symbols": OK + b"X(A)@: a\r\nContent-Length: 0\r\n\r\n",
    "an empty name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "Latin-1": OK + b"X-A: \xe4\xff\r\nContent-Length: 0\r\n\r\n",
    "a folded line": OK + b"X-A: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a bad length": OK + b"Content-Length: -1\r\n\r\nhello",
    "a length in words": OK + b"Content-Length: five\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "length and chunks": OK
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunks twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    "a body of a 204": b"HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\nhello",
    "a body of a 304": b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\nhello",
    "chunks of a 204": b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunks of a 205": b"HTTP/1.1 205 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "more than the length": OK + b"Content-Length: 2\r\n\r\nhello",
    "an HTTP/1.0 answer": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "an HTTP/0.9 answer": b"hello",
    "a bad trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX A: \x01\r\n\r\n",
    "an empty head": b"\r\n\r\n",
    "many headers": OK + b"X-A: b\r\n" * 300 + b"Content-Length: 0\r\n\r\n",
}
"""What a node answers before it closes."""


@pytest.fixture(scope="module")
def awake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy whose GPU is ready."""
    directory = tmp_path_factory.mktemp("awake")
    with running(directory, gpu={"main": gpu(preset="generic")}) as proxy:
        proxy.wake()
        yield proxy


@pytest.fixture(scope="module")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy whose GPU is off, and does not boot."""
    gpus = {"main": gpu(preset="generic", wake_on="never", local={"fail": "boot_hangs"})}
    with running(tmp_path_factory.mktemp("asleep"), gpu=gpus) as proxy:
        yield proxy


def _exchange(
    proxy: RunningProxy, content: bytes, *, then: bytes | None = None, patience: float = 0.2
) -> bytes:
    """Send, read the beginning of the answer, send more, and leave by a reset."""
    got = b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        with contextlib.suppress(OSError):
            client.sendall(content)
            client.settimeout(patience)
            got = client.recv(65536)
            client.settimeout(0.2)
            if then is not None:
                client.sendall(then)
                client.recv(65536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return got


def _assert_no_error(proxy: RunningProxy, since: int) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(_get(b"/_qwenctl/healthz"))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    time.sleep(0.05)
    log = proxy.log[since:]
    assert " ERROR " not in log, log[-3000:]
    assert "Traceback" not in log, log[-3000:]


@pytest.mark.parametrize("content", HTTP.values(), ids=HTTP.keys())
@pytest.mark.parametrize("state", ["awake", "asleep"])
def test_of_http(state: str, content: bytes, request: pytest.FixtureRequest) -> None:
    proxy: RunningProxy = request.getfixturevalue(state)
    since = len(proxy.log)
    _exchange(proxy, content)
    _assert_no_error(proxy, since)


@pytest.mark.parametrize("path", [b"/ws", b"/x"])
@pytest.mark.parametrize("head", HANDSHAKES.values(), ids=HANDSHAKES.keys())
def test_of_a_handshake(awake: RunningProxy, path: bytes, head: bytes) -> None:
    since = len(awake.log)
    _exchange(awake, _get(path, head), then=b"5\r\nhello\r\n0\r\n\r\n")
    _assert_no_error(awake, since)


@pytest.mark.parametrize("frames", FRAMES.values(), ids=FRAMES.keys())
def test_of_frames(awake: RunningProxy, frames: bytes) -> None:
    since = len(awake.log)
    got = _exchange(awake, _get(b"/ws", UPGRADE), then=frames, patience=10)
    assert got.startswith(b"HTTP/1.1 101")
    _exchange(awake, _get(b"/ws", UPGRADE) + frames)
    _assert_no_error(awake, since)


def _answered(answer: bytes, head: bytes = b"") -> bytes:
    """A request that the node answers so."""
    return _get(b"/bytes?hex=" + answer.hex().encode(), head)


def test_of_frames_before_the_handshake_is_answered(awake: RunningProxy) -> None:
    since = len(awake.log)
    with socket.create_connection(("127.0.0.1", awake.port), timeout=10) as client:
        client.sendall(_get(b"/long-poll", UPGRADE))
        until(lambda: awake.journal_of("/long-poll"), 10, "the handshake at the node")
        client.sendall(b"\x81\x00")
        assert client.recv(100) == b""
    _assert_no_error(awake, since)


def test_of_large_answers_that_are_left(awake: RunningProxy) -> None:
    since = len(awake.log)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", awake.port), timeout=10) as client:
            client.sendall(_get(b"/blob?size=50000000"))
            client.recv(1000)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _assert_no_error(awake, since)


@pytest.mark.parametrize("head", [b"", UPGRADE], ids=["HTTP", "websocket"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_of_a_node(awake: RunningProxy, head: bytes, answer: bytes) -> None:
    since = len(awake.log)
    _exchange(awake, _answered(answer, head))
    _assert_no_error(awake, since)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ("an unknown status", b"HTTP/1.1 502 "),
        ("a known status of no class", b"HTTP/1.1 502 "),
        ("a status below 100", b"HTTP/1.1 502 "),
        ("a control character", b"x-a: a b \r\n"),
    ],
)
def test_what_a_client_sees_of_a_bad_answer(awake: RunningProxy, answer: str, seen: bytes) -> None:
    got = _exchange(awake, _answered(ANSWERS[answer]), patience=10)
    assert seen in got


@pytest.mark.parametrize("head", [UPGRADE, *HANDSHAKES.values()])
def test_of_a_handshake_asleep(asleep: RunningProxy, head: bytes) -> None:
    since = len(asleep.log)
    _exchange(asleep, _get(b"/ws", head), then=b"\x81\x00")
    _assert_no_error(asleep, since)
