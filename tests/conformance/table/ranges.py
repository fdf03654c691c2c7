"""Ranges and conditions pass, and answers without content end with their head (RFC 9110 §13, §14)."""

from tests.conformance.case import HOST, Answer, Case, Got, Reply, passes, raw


def part(
    name: str, rfc: str, asked: dict[str, str], reply: bytes, answer: Answer, method: str = "GET"
) -> Case:
    """A request with these headers, and what the node answers."""
    lines = [f"{key}: {value}" for key, value in asked.items()]
    headers = {key.lower(): value for key, value in asked.items()}
    return Case(
        name,
        rfc,
        raw(f"{method} /x HTTP/1.1", HOST, *lines, "", ""),
        passes(Got(method, "/x", headers=headers), answer),
        reply=Reply(reply),
    )


MULTIPART = b"--b\r\nContent-Range: bytes 0-0/9\r\n\r\n1\r\n--b\r\nContent-Range: bytes 8-8/9\r\n\r\n9\r\n--b--\r\n"
PARTS = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=b\r\nContent-Length: %d\r\n\r\n%b"
    % (len(MULTIPART), MULTIPART)
)
PART = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\n12"

RANGES = [
    part(
        "a range",
        "9110 §14.2",
        {"Range": "bytes=0-1"},
        PART,
        Answer(206, b"12", {"content-range": "bytes 0-1/9"}),
    ),
    part("a range from the end", "9110 §14.1.2", {"Range": "bytes=-2"}, PART, Answer(206, b"12")),
    part(
        "several ranges",
        "9110 §14.6",
        {"Range": "bytes=0-0,8-8"},
        PARTS,
        Answer(206, MULTIPART, {"content-type": "multipart/byteranges; boundary=b"}),
    ),
    part(
        "a range of another unit",
        "9110 §14.2",
        {"Range": "lines=1-2"},
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        Answer(200, b"ok"),
    ),
    part(
        "a range with a condition",
        "9110 §13.1.5",
        {"Range": "bytes=0-1", "If-Range": '"v1"'},
        PART,
        Answer(206, b"12"),
    ),
    part(
        "a range that cannot be satisfied",
        "9110 §15.5.17",
        {"Range": "bytes=99-"},
        b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */9\r\nContent-Length: 0\r\n\r\n",
        Answer(416, b"", {"content-range": "bytes */9"}),
    ),
    part(
        "a range of chunks",
        "9110 §14.4",
        {"Range": "bytes=0-1"},
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n0\r\n\r\n",
        Answer(206, b"12"),
    ),
    part(
        "not modified",
        "9110 §15.4.5",
        {"If-None-Match": '"a"'},
        b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n',
        Answer(304, b"", {"etag": '"a"'}),
    ),
    part(
        "not modified, with the length of what is not sent",
        "9112 §6.3 (1)",
        {"If-None-Match": '"a"'},
        b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 1234\r\n\r\n',
        Answer(304, b""),
    ),
    part(
        "a failed precondition",
        "9110 §15.5.13",
        {"If-Match": '"a"'},
        b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n",
        Answer(412, b""),
    ),
    part(
        "that ranges are accepted",
        "9110 §14.3",
        {},
        b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 2\r\n\r\nok",
        Answer(200, b"ok", {"accept-ranges": "bytes"}),
        "HEAD",
    ),
]
RANGES[-1] = part(
    "that ranges are accepted, by HEAD",
    "9110 §14.3",
    {},
    b"HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 9\r\n\r\n",
    Answer(200, b"", {"accept-ranges": "bytes", "content-length": "9"}),
    "HEAD",
)
