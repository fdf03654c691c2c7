"""Connections that stay, requests sent ahead, and the end of both (RFC 9112 §9)."""

from tests.conformance.case import (
    HOST,
    OK,
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


def get(path: str, *lines: str) -> bytes:
    return raw(f"GET {path} HTTP/1.1", HOST, *lines, "", "")


def post(path: str, body: str) -> bytes:
    return raw(f"POST {path} HTTP/1.1", HOST, f"Content-Length: {len(body)}", "", body)


def numbered(count: int) -> tuple[Reply, ...]:
    """Answers that can be told apart."""
    return tuple(Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n) for n in range(count))


def answers(count: int) -> tuple[Answer, ...]:
    return tuple(Answer(200, b"%d" % n) for n in range(count))


OK_200 = Answer(200, b"ok")
SEVERAL = tuple(Got("GET", f"/{n}") for n in range(5))

CONNECTIONS = [
    Case("that stays", "9112 §9.3", get("/x"), passes(Got("GET", "/x"), closes=False)),
    Case(
        "that the client closes",
        "9112 §9.6",
        get("/x", "Connection: close"),
        passes(Got("GET", "/x"), closes=True),
    ),
    Case(
        "that the client closes, among other options",
        "9110 §7.6.1",
        get("/x", "Connection: x-a, Close"),
        passes(Got("GET", "/x"), closes=True),
    ),
    Case(
        "with a request after another",
        "9112 §9.3.2",
        (get("/0"), Pause(), get("/1")),
        passes(SEVERAL[:2], *answers(2)),
        reply=numbered(2),
    ),
    Case(
        "with two requests at once",
        "9112 §9.3.2",
        get("/0") + get("/1"),
        passes(SEVERAL[:2], *answers(2), closes=False),
        reply=numbered(2),
    ),
    Case(
        "with five requests at once",
        "9112 §9.3.2",
        b"".join(get(f"/{n}") for n in range(5)),
        passes(SEVERAL, *answers(5)),
        reply=numbered(5),
    ),
    Case(
        "with bodies and requests at once",
        "9112 §9.3.2",
        post("/0", "hello") + get("/1") + post("/2", "x"),
        passes(
            (Got("POST", "/0", b"hello"), Got("GET", "/1"), Got("POST", "/2", b"x")), *answers(3)
        ),
        reply=numbered(3),
    ),
    Case(
        "with a request after a body without framing",
        "9112 §6.3 (7)",
        raw("POST /0 HTTP/1.1", HOST, "", "") + get("/1"),
        passes((Got("POST", "/0"), Got("GET", "/1")), *answers(2)),
        reply=numbered(2),
    ),
    Case(
        "with empty lines before a request",
        "9112 §2.2",
        b"\r\n\r\n" + get("/x"),
        (passes(Got("GET", "/x")), refused()),
    ),
    Case(
        "with an empty line after a body",
        "9112 §2.2",
        post("/0", "hello") + b"\r\n" + get("/1"),
        passes((Got("POST", "/0", b"hello"), Got("GET", "/1")), *answers(2)),
        reply=numbered(2),
    ),
    Case(
        "with a request after the last",
        "9112 §9.6",
        get("/x", "Connection: close") + get("/evil"),
        passes(Got("GET", "/x"), closes=True),
    ),
    Case(
        "with what is no request after one",
        "9112 §2.2",
        get("/x") + b"\x00\r\n\r\n",
        (
            passes(Got("GET", "/x"), OK_200, Answer(400), closes=True),
            passes(Got("GET", "/x"), OK_200, closes=True),
            refused(),
        ),
    ),
    Case(
        "with more than the body's length",
        "9112 §6.3 (6)",
        post("/x", "hello") + b"!!\r\n\r\n",
        (
            passes(Got("POST", "/x", b"hello"), OK_200, Answer((400, 405)), closes=True),
            passes(Got("POST", "/x", b"hello"), OK_200, closes=True),
            refused(),
        ),
    ),
    Case(
        "that the node closes",
        "9112 §9.6",
        get("/0") + get("/1"),
        passes(SEVERAL[:2], *answers(2)),
        reply=tuple(
            Reply(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n%d" % n,
                closes=True,
            )
            for n in range(2)
        ),
    ),
    Case(
        "whose client has no more to say",
        "9112 §9.6",
        (get("/x"), HalfClose()),
        passes(Got("GET", "/x"), closes=True),
    ),
    Case(
        "whose client has no more to say, after a body",
        "9112 §9.6",
        (post("/x", "hello"), HalfClose()),
        passes(Got("POST", "/x", b"hello"), closes=True),
    ),
    Case(
        "with HEAD and GET at once",
        "9112 §9.3.2",
        raw("HEAD /0 HTTP/1.1", HOST, "", "") + get("/1"),
        passes((Got("HEAD", "/0"), Got("GET", "/1")), Answer(200, b""), OK_200),
        reply=(Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), Reply(OK)),
    ),
    Case(
        "with a request in single bytes",
        "9112 §2.2",
        tuple(get("/x")[at : at + 1] for at in range(len(get("/x")))),
        passes(Got("GET", "/x")),
    ),
    Case(
        "with a request cut in its head",
        "9112 §8",
        (b"GET /x HTTP/1.1\r\nHost: gpu", HalfClose()),
        (refused(400, 408), Outcome(closes=True)),
    ),
]
