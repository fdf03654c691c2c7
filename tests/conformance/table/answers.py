"""Answers of the node: framed as they came, never mixed, never whole when they broke (RFC 9112 §6, §8)."""

from tests.conformance.case import HOST, Answer, Case, Got, Outcome, Reply, passes, raw

GET = raw("GET /x HTTP/1.1", HOST, "", "")
X = Got("GET", "/x")
OK_200 = Answer(200, b"ok")
BIG = bytes(range(256)) * 8192


def answer(
    name: str, rfc: str, reply: bytes, *outcomes: Outcome | Answer, closes: bool = False
) -> Case:
    """What the node answers to a GET, and what the client gets."""
    allowed = tuple(passes(X, one) if isinstance(one, Answer) else one for one in outcomes)
    return Case(name, rfc, GET, allowed, reply=Reply(reply, closes=closes))


BAD_GATEWAY = Answer(502)
ASKED_TWICE = passes((X, X), BAD_GATEWAY)
"""A GET may be sent again (RFC 9110 §9.2.2)."""
BROKEN = Answer(200, whole=False)
NO_ANSWER = Outcome((X,), closes=True)

ANSWERS = [
    answer(
        "with a length",
        "9112 §6.2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        Answer(200, b"ok", framing="length"),
    ),
    answer(
        "of length 0",
        "9110 §8.6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Answer(200, b""),
    ),
    answer(
        "in chunks",
        "9112 §7.1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;a=b\r\nk\r\n0\r\n\r\n",
        OK_200,
    ),
    answer(
        "until the connection's end",
        "9112 §6.3 (8)",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        OK_200,
        closes=True,
    ),
    answer(
        "of 2 MiB, with a length",
        "9112 §6.2",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BIG), BIG),
        Answer(200, BIG),
    ),
    answer(
        "of 2 MiB, until the connection's end",
        "9112 §6.3 (8)",
        b"HTTP/1.1 200 OK\r\n\r\n" + BIG,
        Answer(200, BIG),
        closes=True,
    ),
    answer(
        "204",
        "9110 §15.3.5",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        Answer(204, b"", {"transfer-encoding": None, "content-length": None}),
    ),
    answer(
        "205",
        "9110 §15.3.6",
        b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
        Answer(205, b""),
    ),
    answer(
        "299", "9110 §15", b"HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok", Answer(299, b"ok")
    ),
    answer(
        "302",
        "9110 §15.4.3",
        b"HTTP/1.1 302 Found\r\nLocation: https://else.example/?a=%20\r\nContent-Length: 0\r\n\r\n",
        Answer(302, b"", {"location": "https://else.example/?a=%20"}),
    ),
    answer(
        "401",
        "9110 §15.5.2",
        b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="n"\r\nContent-Length: 2\r\n\r\nno',
        Answer(401, b"no", {"www-authenticate": 'Basic realm="n"'}),
    ),
    answer(
        "500",
        "9110 §15.6.1",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno",
        Answer(500, b"no"),
    ),
    answer(
        "503",
        "9110 §15.6.4",
        b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno",
        Answer(503, b"no", {"retry-after": "7"}),
    ),
    answer("without a reason", "9112 §4", b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", OK_200),
    answer(
        "a header of 20 KiB",
        "9110 §5.4",
        b"HTTP/1.1 200 OK\r\nX-Long: %b\r\nContent-Length: 2\r\n\r\nok" % (b"a" * 20_000),
        Answer(200, b"ok", {"x-long": "a" * 20_000}),
    ),
    answer(
        "cut, with a length",
        "9112 §8",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        BROKEN,
        closes=True,
    ),
    answer(
        "cut, in chunks",
        "9112 §8",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        BROKEN,
        closes=True,
    ),
    answer(
        "cut, in a chunk",
        "9112 §8",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok",
        BROKEN,
        closes=True,
    ),
    answer(
        "cut in its head",
        "9112 §8",
        b"HTTP/1.1 200 OK\r\nContent-",
        BAD_GATEWAY,
        ASKED_TWICE,
        closes=True,
    ),
    answer("none", "9110 §15.6.3", b"", BAD_GATEWAY, ASKED_TWICE, closes=True),
    answer(
        "that is no HTTP",
        "9112 §4",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        BAD_GATEWAY,
        NO_ANSWER,
        closes=True,
    ),
    answer(
        "with lengths that differ",
        "9112 §6.3 (5)",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 1\r\n\r\nok",
        BAD_GATEWAY,
        NO_ANSWER,
        closes=True,
    ),
    answer(
        "with a length that is none",
        "9112 §6.3 (5)",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nok",
        BAD_GATEWAY,
        NO_ANSWER,
        closes=True,
    ),
    answer(
        "with a length and a coding",
        "9112 §6.3 (3)",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        BAD_GATEWAY,
        OK_200,
        closes=True,
    ),
    answer(
        "with a chunk that is none",
        "9112 §7.1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
        BAD_GATEWAY,
        BROKEN,
        NO_ANSWER,
        closes=True,
    ),
    Case(
        "with more than its length",
        "9112 §6.3 (6)",
        GET * 2,
        passes((X, X), OK_200, OK_200),
        reply=(
            Reply(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
                closes=True,
            ),
            Reply(),
        ),
    ),
    Case(
        "with content that has none",
        "9112 §6.3 (1)",
        GET * 2,
        (passes((X, X), Answer(204, b""), OK_200), passes((X, X), BAD_GATEWAY, OK_200)),
        reply=(Reply(b"HTTP/1.1 204 No Content\r\n\r\nevil", closes=True), Reply()),
    ),
]
