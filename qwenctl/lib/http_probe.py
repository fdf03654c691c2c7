"""Probe an HTTP service once, and name in a few words why a request failed."""

from __future__ import annotations

import http.client
import io
import socket
import time
from enum import Enum
from typing import Any
from urllib.parse import quote

import requests

CONNECT_SECONDS = 1.0
"""A machine that boots drops packets; a new connection reaches it sooner than a retransmission."""

_SAFE = "!#$%&'()*+,/:;=?@[]~"


class ProbeResult(Enum):
    """Result of a probe."""

    READY = "ready"
    ERROR = "error"  # a status of 400 or above
    REFUSED = "refused"  # nothing listens, or the connection is closed without an answer
    SILENT = "silent"  # no answer in time
    UNREACHABLE = "unreachable"  # no such name, or no route


def probe(
    host: str,
    port: int,
    path: str,
    *,
    timeout: float,
    connect_timeout: float = CONNECT_SECONDS,
    agent: str = "qwenctl",
) -> tuple[ProbeResult, str]:
    """Send one GET; return the result and, unless ready, the reason in a few words.

    No redirect is followed, no body is read, and no cookie, credential or web proxy of the
    environment is used. A server that sends its headers byte by byte, or interim answers without
    end, does not delay it.

    Args:
        host: name or address, IPv6 without brackets.
        port: TCP port.
        path: path and query; a leading slash is added if missing.
        timeout: seconds to wait for the answer's head.
        connect_timeout: seconds to wait for the connection, at most ``timeout``.
        agent: the User-Agent header, since many servers log each request.
    """
    connection = http.client.HTTPConnection(host, port, timeout=min(connect_timeout, timeout))
    headers = {"User-Agent": agent, "Connection": "close"}
    try:
        connection.connect()
        connection.sock.settimeout(timeout)
        connection.request("GET", quote("/" + path.lstrip("/"), safe=_SAFE), headers=headers)
        until = _Until(connection.sock, time.monotonic() + timeout)
        response = http.client.HTTPResponse(until, method="GET")  # type: ignore[arg-type]
        response.begin()
        status = response.status
    except TimeoutError:
        return ProbeResult.SILENT, "no answer"
    except ConnectionRefusedError:
        return ProbeResult.REFUSED, "connection refused"
    except (ConnectionError, http.client.HTTPException):
        return ProbeResult.REFUSED, "it hangs up without an HTTP answer"
    except OSError as error:
        return ProbeResult.UNREACHABLE, error.strerror or type(error).__name__
    finally:
        connection.close()
    return (ProbeResult.READY, "") if status < 400 else (ProbeResult.ERROR, f"HTTP {status}")


class _Until(io.RawIOBase):
    """A socket that is read until a moment of the monotonic clock."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


IDENTITY = {"Accept-Encoding": "identity"}
"""Asks for an answer as it is, which `read_bounded` returns."""


def read_bounded(response: requests.Response, limit: int, seconds: float) -> bytes:
    """Return the body of a streamed response as it was sent, up to ``limit`` bytes.

    It is not decompressed: a small body can expand a thousandfold (RFC 1951). Ask for
    `IDENTITY`.

    Raises:
        requests.Timeout: it has not arrived within ``seconds``.
        requests.RequestException, urllib3.exceptions.HTTPError, OSError: the connection broke.
    """
    deadline = time.monotonic() + seconds
    # `read` waits for all that it is asked for. urllib3 1 has no `read1`.
    read = getattr(response.raw, "read1", response.raw.read)
    body = b""
    while len(body) < limit and (piece := read(limit - len(body), decode_content=False)):
        body += piece
        if time.monotonic() > deadline:
            raise requests.Timeout("the body comes too slowly")
    return body


PATIENCE = 5.0
"""Seconds for one connection."""


def brief_reason(error: Exception) -> str:
    """Name the kind of a failure, without URLs and names of libraries."""
    if isinstance(error, (requests.Timeout, TimeoutError)):
        return "no answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    text = str(error)
    for words, brief in (
        ("refused", "connection refused"),
        ("resolve", "its name is not known"),
        ("Name or service", "its name is not known"),
        ("unreachable", "no route"),
    ):
        if words in text:
            return brief
    return getattr(error, "strerror", None) or type(error).__name__
