"""Headers that are for one connection alone, and those that pass (RFC 9110 §7.6)."""

from tests.conformance.case import HOST, Answer, Case, Got, Reply, passes, raw

GET = ("GET /x HTTP/1.1", HOST)
X = Got("GET", "/x")


def request(name: str, rfc: str, *lines: str, **expected: str | tuple[str, ...] | None) -> Case:
    """A GET with these lines; ``expected``: what the node gets, with underscores for hyphens."""
    headers = {key.replace("_", "-"): value for key, value in expected.items()}
    return Case(name, rfc, raw(*GET, *lines, "", ""), passes(Got("GET", "/x", headers=headers)))


def answer(name: str, rfc: str, *lines: str, **expected: str | tuple[str, ...] | None) -> Case:
    """An answer of the node with these lines; ``expected``: what the client gets."""
    headers = {key.replace("_", "-"): value for key, value in expected.items()}
    return Case(
        name,
        rfc,
        raw(*GET, "", ""),
        passes(X, Answer(200, b"ok", headers)),
        reply=Reply(raw("HTTP/1.1 200 OK", "Content-Length: 2", *lines, "", "ok")),
    )


HOP_BY_HOP = [
    request(
        "Keep-Alive",
        "9110 §7.6.1",
        "Keep-Alive: timeout=5",
        "Connection: keep-alive",
        keep_alive=None,
    ),
    request("TE", "9110 §10.1.4", "TE: trailers", "Connection: TE", te=None),
    request(
        "Proxy-Connection", "9110 §7.6.1", "Proxy-Connection: keep-alive", proxy_connection=None
    ),
    request(
        "what Connection names",
        "9110 §7.6.1",
        "Connection: X-Private",
        "X-Private: a",
        "X-Public: b",
        x_private=None,
        x_public="b",
    ),
    request(
        "what Connection names, in several lines",
        "9110 §7.6.1",
        "Connection: x-one",
        "Connection: keep-alive , X-TWO",
        "X-One: a",
        "X-Two: b",
        x_one=None,
        x_two=None,
    ),
    request("Connection that names Host", "9110 §7.6.1", "Connection: Host"),
    request(
        "Connection that names Cookie",
        "9110 §7.6.1",
        "Connection: cookie",
        "Cookie: a=b",
        cookie="a=b",
    ),
    Case(
        "Connection that names Content-Length",
        "9110 §7.6.1",
        raw("POST /x HTTP/1.1", HOST, "Connection: content-length", "Content-Length: 2", "", "hi"),
        passes(Got("POST", "/x", b"hi")),
    ),
    Case(
        "Connection that names Transfer-Encoding",
        "9110 §7.6.1",
        raw(
            "POST /x HTTP/1.1",
            HOST,
            "Connection: transfer-encoding",
            "Transfer-Encoding: chunked",
            "",
            "2",
            "hi",
            "0",
            "",
            "",
        ),
        passes(Got("POST", "/x", b"hi")),
    ),
    request(
        "a header in several lines, in order",
        "9110 §5.3",
        "X-A: 1",
        "X-A: 2",
        "X-A: 3",
        x_a=("1", "2", "3"),
    ),
    request("an empty value", "9110 §5.5", "X-A:", "X-B: b", x_a="", x_b="b"),
    request("white space around a value", "9112 §5.1", "X-A: \t a b \t ", x_a="a b"),
    request(
        "a value of many kinds of bytes",
        "9110 §5.5",
        "X-A: !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\tx",
        x_a="!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\tx",
    ),
    request("a value in UTF-8", "9110 §5.5", "X-A: \xc3\xa9", x_a="\xc3\xa9"),
    request("a value in Latin-1", "9110 §5.5", "X-A: \xe9", x_a="\xe9"),
    request(
        "an end-to-end header of the proxy's kind",
        "9110 §11.7.1",
        "Authorization: Basic YTpi",
        authorization="Basic YTpi",
    ),
    request(
        "conditions",
        "9110 §13.1",
        'If-None-Match: "a", W/"b"',
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        if_none_match='"a", W/"b"',
        if_modified_since="Sun, 06 Nov 1994 08:49:37 GMT",
    ),
    request(
        "a name of every kind of byte",
        "9110 §5.6.2",
        "X!#$%&'*+-.^`|~9: a",
        **{"x!#$%&'*+-.^`|~9": "a"},
    ),
    answer(
        "what an answer's Connection names",
        "9110 §7.6.1",
        "Connection: X-Private",
        "X-Private: a",
        "X-Public: b",
        x_private=None,
        x_public="b",
    ),
    answer(
        "an answer's Keep-Alive",
        "9110 §7.6.1",
        "Connection: keep-alive",
        "Keep-Alive: timeout=3",
        keep_alive=None,
    ),
    answer("an answer's Upgrade", "9110 §7.8", "Connection: upgrade", "Upgrade: h2c", upgrade=None),
    answer(
        "an answer's cookies",
        "6265 §3",
        "Set-Cookie: a=1; Path=/",
        "Set-Cookie: b=2; HttpOnly",
        set_cookie=("a=1; Path=/", "b=2; HttpOnly"),
    ),
    answer(
        "an answer's header in several lines",
        "9110 §5.3",
        "Link: <a>",
        "Link: <b>",
        link=("<a>", "<b>"),
    ),
    answer("an answer's value in Latin-1", "9110 §5.5", "X-A: \xe9", x_a="\xe9"),
    answer(
        "an answer's coding of content",
        "9110 §8.4",
        "Content-Encoding: gzip",
        "Vary: Accept-Encoding",
        content_encoding="gzip",
        vary="Accept-Encoding",
    ),
    answer(
        "150 headers of an answer",
        "9110 §5.4",
        *(f"X-{n}: {n}" for n in range(150)),
        x_0="0",
        x_149="149",
    ),
]
