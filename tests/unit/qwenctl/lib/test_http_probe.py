"""Servers that answer without end, byte by byte, or with a bomb."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests

from qwenctl.lib.http_probe import ProbeResult, probe, read_bounded

MIB = 1 << 20


@contextmanager
def server(start: bytes, piece: bytes = b"", pause: float = 0.0) -> Iterator[int]:
    """A port where ``start`` is answered, and then ``piece`` again and again."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def run() -> None:
        connection, _ = listening.accept()
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(start)
                while piece and not over.wait(pause):
                    connection.sendall(piece)
            except OSError:
                pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        over.set()
        thread.join(5)
        listening.close()


@pytest.mark.parametrize(
    ("start", "piece", "pause"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"a", 0.02),
        (b"HTTP/1.1 ", b" ", 0.02),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.05),
    ],
    ids=["interim answers", "a header", "a status", "headers"],
)
def test_a_probe_ends_in_time(start: bytes, piece: bytes, pause: float) -> None:
    began = time.monotonic()
    with server(start, piece, pause) as port:
        result, _ = probe("127.0.0.1", port, "/", timeout=0.4)
        assert time.monotonic() - began < 2.0
    assert result is ProbeResult.SILENT


@pytest.mark.parametrize(
    ("status", "result"), [(b"200 OK", ProbeResult.READY), (b"503 No", ProbeResult.ERROR)]
)
def test_a_probe_reads_the_head_alone(status: bytes, result: ProbeResult) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 " + status + b"\r\n\r\n"
    with server(head, b"x" * 65536) as port:
        assert probe("127.0.0.1", port, "/", timeout=2.0)[0] is result


def fetched(port: int, limit: int, seconds: float) -> bytes:
    with requests.get(f"http://127.0.0.1:{port}/", stream=True, timeout=2) as answer:
        return read_bounded(answer, limit, seconds)


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_body_is_read_up_to_the_limit() -> None:
    with server(LENGTH % 5 + b"hello") as port:
        assert fetched(port, 100, 5) == b"hello"
    with server(CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n") as port:
        assert fetched(port, 100, 5) == b"hello"
    with server(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536) as port:
        assert fetched(port, MIB, 5) == b"x" * MIB


def test_a_bomb_stays_small() -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    with server(head % len(bomb) + bomb) as port:
        assert fetched(port, MIB, 5) == bomb


def test_a_body_that_drips_is_given_up() -> None:
    began = time.monotonic()
    with server(LENGTH % 1000, b"x", 0.05) as port, pytest.raises(requests.Timeout):
        fetched(port, MIB, 0.5)
    assert time.monotonic() - began < 3.0
