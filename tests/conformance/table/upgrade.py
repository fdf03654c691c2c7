"""Upgrades: to WebSocket by GET, and to nothing else (RFC 9110 §7.8, RFC 6455 §4)."""

from tests.conformance.case import HOST, Answer, Case, Got, Outcome, Reply, passes, raw, refused

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ")
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
WEBSOCKET = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)
LENGTH = ("Content-Length: 5", "", "hello")
CHUNKED = ("Transfer-Encoding: chunked", "", "5", "hello", "0", "", "")
NONE = {"upgrade": None, "http2-settings": None}
HELLO = Got("POST", "/x", b"hello", NONE)
SHAKE = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
BYE = b"\x88\x05\x03\xe8bye"
"""A frame that closes with 1000 "bye" (RFC 6455 §5.5.1)."""
ACCEPT = {"sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}
"""The answer to `KEY` (RFC 6455 §1.3)."""


def ignored(name: str, *lines: str) -> Case:
    """A POST whose upgrade is ignored."""
    return Case(name, "9110 §7.8", raw("POST /x HTTP/1.1", HOST, *lines), passes(HELLO))


def handshake(
    name: str,
    rfc: str,
    reply: str | bytes,
    answer: Answer,
    *more: str,
    after: bytes | None = None,
) -> Case:
    """A handshake, and what the node answers."""
    content = reply.encode("latin-1") if isinstance(reply, str) else reply
    return Case(
        name,
        rfc,
        raw("GET /x HTTP/1.1", HOST, *WEBSOCKET, *more, "", ""),
        Outcome(
            (Got("GET", "/x", headers={"upgrade": "websocket"}),),
            (answer,),
            after_upgrade=after,
        ),
        reply=Reply(content, closes=not content.startswith(b"HTTP/1.1 101")),
    )


def no_handshake(name: str, *lines: str, rfc: str = "6455 §4.2.1") -> Case:
    """A handshake that is none: refused, or served as if it were not asked for."""
    return Case(
        name,
        rfc,
        raw("GET /x HTTP/1.1", HOST, *lines, "", ""),
        (refused(400, 426), passes(Got("GET", "/x")), Outcome(client=(Answer((400, 426)),))),
    )


UPGRADE = [
    ignored("to h2c, with a length", *H2C, *LENGTH),
    ignored("to h2c, in chunks", *H2C, *CHUNKED),
    ignored("to TLS", "Connection: upgrade", "Upgrade: TLS/1.0", *LENGTH),
    ignored("to one of several", "Connection: upgrade", "Upgrade: h2c, TLS/1.0", *LENGTH),
    ignored("that Connection does not name", "Upgrade: h2c", *LENGTH),
    ignored("to WebSocket, of a POST", *WEBSOCKET, *LENGTH),
    ignored("to WebSocket, of a POST in chunks", *WEBSOCKET, *CHUNKED),
    Case(
        "to h2c, of a GET",
        "9110 §7.8",
        raw("GET /x HTTP/1.1", HOST, *H2C, "", ""),
        passes(Got("GET", "/x", headers=NONE)),
    ),
    Case(
        "to h2c, and another request",
        "9110 §7.8",
        raw("GET /x HTTP/1.1", HOST, *H2C, "", "GET /y HTTP/1.1", HOST, "", ""),
        passes((Got("GET", "/x", headers=NONE), Got("GET", "/y"))),
    ),
    Case(
        "to WebSocket, ahead of another answer",
        "9112 §9.3.2",
        raw("GET /x HTTP/1.1", HOST, "", "GET /y HTTP/1.1", HOST, *WEBSOCKET, "", ""),
        passes((Got("GET", "/x"), Got("GET", "/y", headers=NONE))),
        on=("direct",),
    ),
    handshake(
        "a WebSocket",
        "6455 §4.2.2",
        SHAKE + "\r\n",
        Answer(101, headers={**ACCEPT, "upgrade": "websocket"}),
    ),
    handshake(
        "a WebSocket's protocol",
        "6455 §4.2.2",
        SHAKE + "Sec-WebSocket-Protocol: b\r\n\r\n",
        Answer(101, headers={**ACCEPT, "sec-websocket-protocol": "b"}),
        "Sec-WebSocket-Protocol: a, b",
    ),
    handshake(
        "a WebSocket's cookies",
        "6455 §4.2.2",
        SHAKE + "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-A: b\r\n\r\n",
        Answer(101, headers={**ACCEPT, "set-cookie": ("a=1", "b=2"), "x-a": "b"}),
    ),
    handshake(
        "a WebSocket that is closed with a reason",
        "6455 §5.5.1",
        SHAKE.encode() + b"\r\n" + BYE,
        Answer(101, headers=ACCEPT),
        after=BYE,
    ),
    handshake(
        "a WebSocket's message",
        "6455 §5.6",
        SHAKE.encode() + b"\r\n\x81\x02hi" + BYE,
        Answer(101, headers=ACCEPT),
        after=b"\x81\x02hi" + BYE,
    ),
    handshake(
        "a handshake that the node refuses with 401",
        "6455 §4.1",
        'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="n"\r\nContent-Length: 2\r\n\r\nno',
        Answer(401, b"no", {"www-authenticate": 'Basic realm="n"'}),
    ),
    handshake(
        "a handshake that the node refuses with 403",
        "6455 §4.1",
        "HTTP/1.1 403 Forbidden\r\nX-A: b\r\nContent-Length: 2\r\n\r\nno",
        Answer(403, b"no", {"x-a": "b"}),
    ),
    no_handshake(
        "a handshake without a key",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
    ),
    no_handshake("a handshake without a version", "Connection: Upgrade", "Upgrade: websocket", KEY),
    no_handshake(
        "a handshake of another version",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 8",
        KEY,
        rfc="6455 §4.2.2",
    ),
    no_handshake(
        "a handshake with a key that is none",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: short",
    ),
    no_handshake(
        "a handshake that Connection does not name",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        KEY,
    ),
]
