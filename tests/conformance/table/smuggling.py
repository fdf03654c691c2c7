"""Requests that servers read differently: refused, or read as what was forwarded says.

``/evil`` is what a second reader would see. Where it reached the node as a request of its own, the
two would not agree who asked for it (RFC 9112 §11.2).
"""

from dataclasses import replace

from tests.conformance.case import (
    ANY_READING,
    HOST,
    UNFINISHED,
    Answer,
    Case,
    Got,
    Outcome,
    passes,
    raw,
    refused,
)

POST = ("POST /x HTTP/1.1", HOST)
EVIL = raw("GET /evil HTTP/1.1", HOST, "Connection: close", "", "")
CHUNKS = raw("5", "hello", "0", "", "")
HELLO = Got("POST", "/x", b"hello")
ONE_READING = (refused(), passes(HELLO), passes(HELLO, closes=True))
"""Refused, or the body that the field says, and nothing after it."""


def length(value: str | bytes, rfc: str = "9112 §6.3 (5)") -> Case:
    """A length that is none."""
    line = b"Content-Length: " + (value if isinstance(value, bytes) else value.encode())
    return Case(f"length {value!r}", rfc, raw(*POST, line, "", "hello"), refused())


def coding(*values: str) -> Case:
    """A transfer coding that is not chunked alone."""
    lines = [f"Transfer-Encoding: {value}" for value in values]
    return Case(
        f"coding {' and '.join(map(repr, values))}",
        "9112 §6.1",
        raw(*POST, *lines, "", CHUNKS),
        refused(),
    )


def chunk(name: str, *lines: str | bytes, rfc: str = "9112 §7.1") -> Case:
    """A chunk that is none. Its request may have been begun, and may not end."""
    return Case(
        f"chunk {name}",
        rfc,
        raw(*POST, "Transfer-Encoding: chunked", "", *lines) + EVIL,
        (
            refused(400, 502),
            Outcome((Got("POST", "/x", b"", whole=False),), (Answer((400, 502)),), closes=True),
            Outcome(
                (Got("POST", "/x", b"hello", whole=False),), (Answer((400, 502)),), closes=True
            ),
        ),
        but={"nginx": UNFINISHED, "caddy": UNFINISHED},
    )


def head(name: str, rfc: str, *lines: str | bytes) -> Case:
    """A head that is none."""
    return Case(name, rfc, raw(*lines, "", "") + EVIL, refused())


_ROWS = [
    Case(
        "a length beside a coding",
        "9112 §6.1",
        raw(
            *POST, f"Content-Length: {len(CHUNKS + EVIL)}", "Transfer-Encoding: chunked", "", CHUNKS
        )
        + EVIL,
        (refused(), passes(HELLO, closes=True)),
    ),
    Case(
        "a coding beside a length",
        "9112 §6.1",
        raw(*POST, "Transfer-Encoding: chunked", "Content-Length: 3", "", CHUNKS) + EVIL,
        (refused(), passes(HELLO, closes=True)),
    ),
    Case(
        "a coding beside length 0",
        "9112 §6.1",
        raw(*POST, "Content-Length: 0", "Transfer-Encoding: chunked", "", CHUNKS),
        (refused(), passes(HELLO, closes=True)),
    ),
    coding("identity"),
    coding("gzip"),
    coding("xchunked"),
    coding("chunked", "identity"),
    coding("identity", "chunked"),
    coding("chunked", "chunked"),
    coding("chunked, chunked"),
    coding("chunked, identity"),
    coding("identity, chunked"),
    coding("gzip, chunked"),
    coding("chunked;q=0.5"),
    coding('"chunked"'),
    coding("chunked\x0b"),
    coding("\x0bchunked"),
    coding("chun\x00ked"),
    coding(""),
    coding(","),
    coding(", chunked"),
    coding("chunked,"),
    Case(
        "coding in HTTP/1.0",
        "9112 §6.1",
        raw("POST /x HTTP/1.0", HOST, "Transfer-Encoding: chunked", "", CHUNKS) + EVIL,
        (refused(), passes(HELLO, closes=True)),
    ),
    head(
        "coding with white space before the colon",
        "9112 §5.1",
        *POST,
        "Transfer-Encoding : chunked",
    ),
    head("coding with a tab before the colon", "9112 §5.1", *POST, "Transfer-Encoding\t: chunked"),
    head("coding on a folded line", "9112 §5.2", *POST, "Transfer-Encoding:", " chunked"),
    head(
        "coding after a line that ends with LF",
        "9112 §2.2",
        *POST,
        b"X-A: b\nTransfer-Encoding: chunked",
    ),
    head("coding after a bare CR", "9112 §2.2", *POST, b"X-A: b\rTransfer-Encoding: chunked"),
    head(
        "coding on the first line after white space",
        "9112 §2.2",
        "POST /x HTTP/1.1",
        " Transfer-Encoding: chunked",
        HOST,
    ),
    head("length on a folded line", "9112 §5.2", *POST, "Content-Length:", "\t5"),
    head("length with white space before the colon", "9112 §5.1", *POST, "Content-Length : 5"),
    Case(
        "lengths that differ",
        "9112 §6.3 (5)",
        raw(*POST, "Content-Length: 5", f"Content-Length: {5 + len(EVIL)}", "", "hello") + EVIL,
        refused(),
    ),
    Case(
        "lengths that are the same",
        "9110 §8.6",
        raw(*POST, "Content-Length: 5", "Content-Length: 5", "", "hello"),
        ONE_READING,
    ),
    Case(
        "lengths that are the same, in one line",
        "9110 §8.6",
        raw(*POST, "Content-Length: 5, 5", "", "hello"),
        ONE_READING,
    ),
    Case(
        "lengths that differ, in one line",
        "9112 §6.3 (5)",
        raw(*POST, "Content-Length: 5, 6", "", "hello"),
        refused(),
    ),
    length("+5"),
    length("-5"),
    length("-0"),
    length("0x5"),
    length("5 5"),
    length("5;"),
    length("5.0"),
    length("1e1"),
    length("5_0"),
    length(""),
    length(b"\xd9\xa5"),
    length("5\x0b"),
    length("18446744073709551621"),
    length("9" * 40),
    chunk("size 0x5", "0x5", "hello", "0", "", ""),
    chunk("size +5", "+5", "hello", "0", "", ""),
    chunk("size -5", "-5", "hello", "0", "", ""),
    chunk("size with white space before", " 5", "hello", "0", "", ""),
    chunk("size empty", "", "hello", "0", "", ""),
    chunk("size that is no number", "5g", "hello", "0", "", ""),
    chunk("size over 64 bits", "10000000000000005", "hello", "0", "", ""),
    chunk("size over 64 bits, with many digits", "f" * 40, "hello", "0", "", ""),
    chunk("longer than its size", "5", "hello!", "0", "", ""),
    chunk("without CRLF after it", b"5\r\nhello0\r\n\r\n"),
    chunk("with LF alone after its size", b"5\nhello\r\n0\r\n\r\n"),
    chunk("with LF alone after it", b"5\r\nhello\n0\r\n\r\n"),
    chunk("with CR alone after its size", b"5\rhello\r\n0\r\n\r\n"),
    chunk("with LF in its extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n", rfc="9112 §7.1.1"),
    chunk("with CR in its extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n", rfc="9112 §7.1.1"),
    chunk("with NUL in its extension", b"5;a\x00b\r\nhello\r\n0\r\n\r\n", rfc="9112 §7.1.1"),
    head("NUL in a value", "9110 §5.5", *POST, "X-A: a\x00b"),
    head("NUL in a name", "9110 §5.1", *POST, "X\x00A: b"),
    head("CR in a value", "9110 §5.5", *POST, b"X-A: a\rb"),
    head("a control character in a value", "9110 §5.5", *POST, "X-A: a\x01b"),
    head("DEL in a value", "9110 §5.5", *POST, "X-A: a\x7fb"),
    head("a name that is no token", "9110 §5.1", *POST, "X(A): b"),
    head("a name with white space", "9110 §5.1", *POST, "X A: b"),
    head("a name with a byte over 127", "9110 §5.1", *POST, b"X\xe9: b"),
    head("an empty name", "9110 §5.1", *POST, ": b"),
    head("a line without a colon", "9112 §5", *POST, "Evil"),
    head("a folded line", "9112 §5.2", *POST, "X-A: a", " b"),
    head("a line of white space", "9112 §5.2", *POST, " ", "X-A: b"),
    Case(
        "lines that end with LF",
        "9112 §2.2",
        b"POST /x HTTP/1.1\nHost: gpu.example\nContent-Length: 5\n\nhello",
        ONE_READING,
    ),
    Case(
        "an end of the head that is LF",
        "9112 §2.2",
        raw(*POST, "Content-Length: 5") + b"\r\n\nhello",
        ONE_READING,
    ),
]

LENIENT = {
    "nginx": (
        "chunk with LF alone after its size",
        "chunk with LF alone after it",
        "chunk with NUL in its extension",
        "a name that is no token",
        "a name with a byte over 127",
        "a line without a colon",
        "a control character in a value",
        "DEL in a value",
    ),
    "caddy": (
        "a length beside a coding",
        "a coding beside a length",
        "a coding beside length 0",
        "coding in HTTP/1.0",
        "coding on a folded line",
        "coding after a line that ends with LF",
        "length on a folded line",
        "length ''",
        "chunk size -5",
        "chunk with LF alone after its size",
        "chunk with LF in its extension",
        "chunk with CR in its extension",
        "chunk with NUL in its extension",
        "an empty name",
        "a folded line",
    ),
}
"""What servers in front read, and write anew or leave out, before anything of ours sees it."""

SMUGGLING = [
    replace(
        case,
        but={**case.but} | {front: ANY_READING for front in LENIENT if case.name in LENIENT[front]},
    )
    for case in _ROWS
]
