"""Clients and nodes of HTTP/1.0 (RFC 9112 §2.3, §9.3 and appendix C)."""

from tests.conformance.case import HOST, Answer, Case, Got, Outcome, Reply, passes, raw, refused

GET = ("GET /x HTTP/1.0", HOST)
X = Got("GET", "/x")
OK_200 = Answer(200, b"ok")
CHUNKS = Reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")

HTTP10 = [
    Case("a connection that does not stay", "9112 §9.3", raw(*GET, "", ""), passes(X, closes=True)),
    Case(
        "a connection that stays",
        "9112 §C.2.2",
        raw(*GET, "Connection: keep-alive", "", ""),
        (
            passes(X, Answer(200, b"ok", {"connection": "keep-alive"}), closes=False),
            passes(X, Answer(200, b"ok"), closes=True),
        ),
    ),
    Case(
        "chunks of the node",
        "9112 §6.1",
        raw(*GET, "", ""),
        passes(X, Answer(200, b"ok", {"transfer-encoding": None}), closes=True),
        reply=CHUNKS,
    ),
    Case(
        "chunks of the node, on a connection that would stay",
        "9112 §6.1",
        raw(*GET, "Connection: keep-alive", "", ""),
        (
            passes(X, Answer(200, b"ok", {"transfer-encoding": None}, "close"), closes=True),
            passes(X, Answer(200, b"ok", {"transfer-encoding": None}, "length")),
        ),
        reply=CHUNKS,
    ),
    Case(
        "a body",
        "9112 §6.2",
        raw("POST /x HTTP/1.0", HOST, "Content-Length: 5", "", "hello"),
        passes(Got("POST", "/x", b"hello"), closes=True),
    ),
    Case(
        "no host", "9112 §3.2", raw("GET /x HTTP/1.0", "", ""), (passes(X, closes=True), refused())
    ),
    Case("two hosts", "9112 §3.2", raw(*GET, "Host: evil.example", "", ""), refused()),
    Case(
        "HEAD",
        "9110 §9.3.2",
        raw("HEAD /x HTTP/1.0", HOST, "", ""),
        passes(Got("HEAD", "/x"), Answer(200, b"", {"content-length": "9"}), closes=True),
        reply=Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
    ),
    Case("a request after the first", "9112 §9.3", raw(*GET, "", "") * 2, passes(X, closes=True)),
    Case("HTTP/0.9", "9112 §2.3", raw("GET /x", "", ""), (refused(), Outcome(closes=True))),
    Case(
        "a node of HTTP/1.0",
        "9112 §6.3 (8)",
        raw("GET /x HTTP/1.1", HOST, "", ""),
        passes(X, OK_200),
        reply=Reply(b"HTTP/1.0 200 OK\r\n\r\nok", closes=True),
    ),
    Case(
        "a node of HTTP/1.0, with a length",
        "9112 §6.2",
        raw("GET /x HTTP/1.1", HOST, "", "") * 2,
        passes((X, X), OK_200, OK_200),
        reply=Reply(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=True),
    ),
    Case(
        "a node of HTTP/1.0, for HTTP/1.0",
        "9112 §6.3 (8)",
        raw(*GET, "", ""),
        passes(X, OK_200, closes=True),
        reply=Reply(b"HTTP/1.0 200 OK\r\n\r\nok", closes=True),
    ),
]
