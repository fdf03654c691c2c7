"""Interim answers: 100, 102, 103 and a 101 that nobody asked for (RFC 9110 §10.1.1, §15.2)."""

from tests.conformance.case import (
    HOST,
    OK,
    Answer,
    Await,
    Case,
    Got,
    Outcome,
    Reply,
    passes,
    raw,
    refused,
)

EXPECTS = raw("POST /x HTTP/1.1", HOST, "Content-Length: 5", "Expect: 100-continue", "", "")
CHUNKED = raw(
    "POST /x HTTP/1.1", HOST, "Transfer-Encoding: chunked", "Expect: 100-continue", "", ""
)
HELLO = Got("POST", "/x", b"hello")
OK_200 = Answer(200, b"ok")
GET = raw("GET /x HTTP/1.1", HOST, "", "")
X = Got("GET", "/x")
HINTS = raw("HTTP/1.1 103 Early Hints", "Link: </a.css>; rel=preload", "", "") + OK

INTERIM = [
    Case(
        "a client that waits for 100",
        "9110 §10.1.1",
        (EXPECTS, Await(100), b"hello"),
        passes(HELLO, Answer(100), OK_200),
    ),
    Case(
        "a client that waits for 100, with chunks",
        "9110 §10.1.1",
        (CHUNKED, Await(100), b"5\r\nhello\r\n0\r\n\r\n"),
        passes(HELLO, Answer(100), OK_200),
    ),
    Case(
        "a client that does not wait",
        "9110 §10.1.1",
        EXPECTS + b"hello",
        (passes(HELLO, OK_200), passes(HELLO, Answer(100), OK_200)),
    ),
    Case(
        "an expectation without a body",
        "9110 §10.1.1",
        raw("GET /x HTTP/1.1", HOST, "Expect: 100-continue", "", ""),
        (passes(X), passes(X, Answer(100), OK_200)),
    ),
    Case(
        "an expectation of HTTP/1.0",
        "9110 §10.1.1",
        raw("POST /x HTTP/1.0", HOST, "Content-Length: 5", "Expect: 100-continue", "", "hello"),
        passes(HELLO, OK_200, closes=True),
    ),
    Case(
        "an expectation that nobody knows",
        "9110 §10.1.1",
        raw("POST /x HTTP/1.1", HOST, "Content-Length: 5", "Expect: a-miracle", "", "hello"),
        (passes(HELLO), refused(417), Outcome(client=(Answer(417),))),
    ),
    Case(
        "hints of the node",
        "8297 §2",
        GET,
        (passes(X, Answer(103, headers={"link": "</a.css>; rel=preload"}), OK_200)),
        reply=Reply(HINTS),
    ),
    Case(
        "hints of the node, in two segments",
        "8297 §2",
        GET,
        passes(X, Answer(103), Answer(103), OK_200),
        reply=Reply(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + HINTS),
    ),
    Case(
        "hints of the node for HTTP/1.0",
        "9110 §15.2",
        raw("GET /x HTTP/1.0", HOST, "", ""),
        passes(X, OK_200, closes=True),
        reply=Reply(HINTS),
    ),
    Case(
        "102 of the node",
        "9110 §15.2",
        GET,
        (passes(X), passes(X, Answer(102), OK_200)),
        reply=Reply(b"HTTP/1.1 102 Processing\r\n\r\n" + OK),
    ),
    Case(
        "100 of the node, for which nobody asked",
        "9110 §15.2.1",
        GET,
        (passes(X), passes(X, Answer(100), OK_200)),
        reply=Reply(b"HTTP/1.1 100 Continue\r\n\r\n" + OK),
    ),
    Case(
        "101 of the node, for which nobody asked",
        "9110 §15.2.2",
        GET,
        passes(X, Answer(502)),
        reply=Reply(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
        ),
    ),
    Case(
        "a final answer instead of 100",
        "9110 §10.1.1",
        EXPECTS,
        (
            passes(Got("POST", "/x", whole=False), Answer(403, b"no")),
            passes(Got("POST", "/x", whole=False), Answer(100), Answer(403, b"no")),
        ),
        reply=Reply(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", early=True),
    ),
]
