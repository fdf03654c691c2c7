"""Trailers may be left out; they never become headers (RFC 9110 §6.5)."""

from tests.conformance.case import (
    FROM_CLIENT,
    HOST,
    Answer,
    Case,
    Got,
    Headers,
    Reply,
    Value,
    passes,
    raw,
    refused,
)

HEAD = ("POST /x HTTP/1.1", HOST, "Transfer-Encoding: chunked")


def request(name: str, *trailers: str, rfc: str = "9110 §6.5.1", **headers: Value) -> Case:
    """A request with these trailers; ``headers``: what the node gets."""
    expected: Headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return Case(
        name,
        rfc,
        raw(*HEAD, "", "2", "hi", "0", *trailers, "", ""),
        (passes(Got("POST", "/x", b"hi", expected)), refused()),
    )


def answer(name: str, *trailers: str, **headers: Value) -> Case:
    """An answer with these trailers; ``headers``: what the client gets."""
    expected: Headers = {key.replace("_", "-"): value for key, value in headers.items()}
    reply = raw(
        "HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", "2", "ok", "0", *trailers, "", ""
    )
    return Case(
        name,
        "9110 §6.5.1",
        raw("GET /x HTTP/1.1", HOST, "", ""),
        passes(Got("GET", "/x"), Answer(200, b"ok", expected)),
        reply=Reply(reply),
    )


TRAILERS = [
    request("a trailer", "X-Sum: 1", x_sum=None),
    request("several trailers", "X-Sum: 1", "X-Other: 2", x_sum=None, x_other=None),
    request("a trailer that is a length", "Content-Length: 50", content_length=None),
    request("a trailer that is a coding", "Transfer-Encoding: gzip", transfer_encoding="chunked"),
    request(
        "a trailer that is an address", "X-Forwarded-For: 192.0.2.66", x_forwarded_for=FROM_CLIENT
    ),
    request("a trailer that is a credential", "Authorization: Bearer x", authorization=None),
    request("a trailer that is a host", "Host: evil.example"),
    Case(
        "a trailer that is announced",
        "9110 §6.6.2",
        raw(*HEAD, "Trailer: X-Sum", "", "2", "hi", "0", "X-Sum: 1", "", ""),
        passes(Got("POST", "/x", b"hi", {"x-sum": None})),
    ),
    Case(
        "a trailer and another request",
        "9112 §7.1.2",
        raw(*HEAD, "", "2", "hi", "0", "X-Sum: 1", "", "GET /y HTTP/1.1", HOST, "", ""),
        passes((Got("POST", "/x", b"hi"), Got("GET", "/y"))),
    ),
    answer("a trailer of an answer", "X-Sum: 1", x_sum=None),
    answer("a trailer of an answer that is a cookie", "Set-Cookie: a=b", set_cookie=None),
    Case(
        "a trailer of an answer that is a length",
        "9110 §6.5.1",
        raw("GET /x HTTP/1.1", HOST, "", ""),
        (
            passes(Got("GET", "/x"), Answer(200, b"ok", {"content-length": None})),
            passes(Got("GET", "/x"), Answer(502)),
            passes(Got("GET", "/x"), Answer(200, whole=False)),
        ),
        reply=Reply(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
            b"0\r\nContent-Length: 99\r\n\r\n"
        ),
    ),
]
