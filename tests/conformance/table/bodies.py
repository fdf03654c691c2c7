"""Bodies of requests, and how they are framed (RFC 9112 §6 and §7)."""

from tests.conformance.case import (
    ANY_READING,
    HOST,
    NO_ANSWER,
    Answer,
    Case,
    Got,
    HalfClose,
    Outcome,
    Pause,
    Reply,
    passes,
    raw,
    refused,
)

POST = ("POST /x HTTP/1.1", HOST)
CHUNKED = (*POST, "Transfer-Encoding: chunked", "")
EVIL = raw("GET /evil HTTP/1.1", HOST, "", "")
HELLO = Got("POST", "/x", b"hello")
BIG = bytes(range(256)) * 8192
"""2 MiB: more than nginx takes unless told."""


def chunks(body: bytes, size: int) -> bytes:
    """A body in chunks of that size."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CUT = (
    Outcome((Got("POST", "/x", b"hel", whole=False),), closes=True),
    Outcome(
        (Got("POST", "/x", b"hel", whole=False),), (Answer((400, 408, 499, 502)),), closes=True
    ),
    refused(),
    NO_ANSWER,
)
"""The client closed its side in the middle of a body: nobody may take it for whole."""

CUT_AT_CADDY = (
    *CUT,
    Outcome((Got("POST", "/x", b"hel", whole=False),), (Answer(200, b""),), closes=True),
)
"""Caddy answers an empty 200 to a client that it takes for gone."""

BODIES = [
    Case(
        "none",
        "9112 §6.3 (7)",
        raw("GET /x HTTP/1.1", HOST, "", ""),
        passes(Got("GET", "/x", framing="none")),
    ),
    Case(
        "of a POST without framing there is none",
        "9112 §6.3 (7)",
        raw(*POST, "", ""),
        passes(Got("POST", "/x")),
    ),
    Case("with a length", "9112 §6.2", raw(*POST, "Content-Length: 5", "", "hello"), passes(HELLO)),
    Case(
        "of length 0",
        "9110 §8.6",
        raw(*POST, "Content-Length: 0", "", ""),
        passes(Got("POST", "/x", headers={"content-length": "0"})),
    ),
    Case(
        "with white space around the length",
        "9112 §5.1",
        raw(*POST, "Content-Length:   5  ", "", "hello"),
        passes(HELLO),
    ),
    Case(
        "with tabs around the length, which llhttp refuses",
        "9112 §5.1",
        raw(*POST, "Content-Length:\t5\t", "", "hello"),
        (passes(HELLO), refused()),
    ),
    Case(
        "with zeros before the length",
        "9110 §8.6",
        raw(*POST, "Content-Length: 0000005", "", "hello"),
        (passes(HELLO), refused()),
    ),
    Case("in a chunk", "9112 §7.1", raw(*CHUNKED, "5", "hello", "0", "", ""), passes(HELLO)),
    Case(
        "in chunks",
        "9112 §7.1",
        raw(*CHUNKED, "1", "h", "3", "ell", "1", "o", "0", "", ""),
        passes(HELLO),
    ),
    Case(
        "in no chunk but the last",
        "9112 §7.1",
        raw(*CHUNKED, "0", "", ""),
        passes(Got("POST", "/x")),
    ),
    Case(
        "in chunks of hexadecimal sizes",
        "9112 §7.1",
        raw(*CHUNKED, "a", "0123456789", "A", "0123456789", "0", "", ""),
        passes(Got("POST", "/x", b"0123456789" * 2)),
    ),
    Case(
        "in chunks of sizes with zeros before",
        "9112 §7.1",
        raw(*CHUNKED, "0005", "hello", "000", "", ""),
        passes(HELLO),
    ),
    Case(
        "in chunks with extensions",
        "9112 §7.1.1",
        raw(*CHUNKED, "5;a=b;c", "hello", "0;d", "", ""),
        passes(HELLO),
    ),
    Case(
        "in chunks with a quoted extension",
        "9112 §7.1.1",
        raw(*CHUNKED, '5;a="b;c"', "hello", "0", "", ""),
        (passes(HELLO), refused()),
    ),
    Case(
        "whose coding is written otherwise",
        "9112 §7",
        raw(*POST, "transfer-encoding: CHUNKED", "", "5", "hello", "0", "", ""),
        passes(HELLO),
    ),
    Case(
        "with a length, in segments",
        "9112 §6.2",
        (raw(*POST, "Content-Length: 5", "", "he"), Pause(), b"ll", Pause(), b"o"),
        passes(HELLO),
    ),
    Case(
        "in chunks, in segments",
        "9112 §7.1",
        (raw(*CHUNKED, "5"), Pause(), b"\r\nhel", Pause(), b"lo\r", Pause(), b"\n0\r\n\r\n"),
        passes(HELLO),
    ),
    Case(
        "that looks like a request",
        "9112 §6.2",
        raw(*POST, f"Content-Length: {len(EVIL)}", "", EVIL),
        passes(Got("POST", "/x", EVIL)),
    ),
    Case(
        "in a chunk, that looks like a last chunk",
        "9112 §7.1",
        raw(*CHUNKED, "7", "0\r\n\r\nab", "0", "", ""),
        passes(Got("POST", "/x", b"0\r\n\r\nab")),
    ),
    Case(
        "of a GET",
        "9110 §9.3.1",
        raw("GET /x HTTP/1.1", HOST, "Content-Length: 5", "", "hello"),
        passes(Got("GET", "/x", b"hello")),
    ),
    Case(
        "of a DELETE",
        "9110 §9.3.5",
        raw("DELETE /x HTTP/1.1", HOST, "Content-Length: 5", "", "hello"),
        passes(Got("DELETE", "/x", b"hello")),
    ),
    Case(
        "of a GET, in chunks",
        "9110 §9.3.1",
        raw("GET /x HTTP/1.1", HOST, "Transfer-Encoding: chunked", "", "5", "hello", "0", "", ""),
        passes(Got("GET", "/x", b"hello")),
    ),
    Case(
        "of 2 MiB, with a length",
        "9112 §6.2",
        raw(*POST, f"Content-Length: {len(BIG)}", "", BIG),
        passes(Got("POST", "/x", BIG)),
    ),
    Case(
        "of 2 MiB, in chunks",
        "9112 §7.1",
        raw(*CHUNKED, chunks(BIG, 65536)),
        passes(Got("POST", "/x", BIG)),
    ),
    Case(
        "cut, with a length",
        "9112 §8",
        (raw(*POST, "Content-Length: 5", "", "hel"), Pause(), HalfClose()),
        CUT,
        but={"caddy": CUT_AT_CADDY},
    ),
    Case(
        "cut, in chunks",
        "9112 §8",
        (raw(*CHUNKED, "3", "hel", ""), Pause(), HalfClose()),
        CUT,
        but={"caddy": CUT_AT_CADDY},
    ),
    Case(
        "answered before it was read",
        "9112 §9.6",
        raw(*POST, "Content-Length: 500000", "", "hel"),
        Outcome((Got("POST", "/x", b"", whole=False),), (Answer(413, b"large"),)),
        reply=Reply(
            b"HTTP/1.1 413 Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge", early=True
        ),
        but={"caddy": ANY_READING},  # it waits for the rest of the body
    ),
]
