"""Check that the body of a request is coded in the one way that we decode."""

from __future__ import annotations

from collections.abc import Iterable


def coding_problem(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return why a request's transfer coding is to be refused, or an empty text (RFC 9112 §6.1).

    Header names are lower case. llhttp decodes chunks wherever ``chunked`` comes last. The codings
    before it would be lost, because what is forwarded says ``chunked`` alone.
    """
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if not codings or (len(codings) == 1 and codings[0].lower() == b"chunked"):
        return ""
    return "the only transfer coding that this server understands is chunked"
