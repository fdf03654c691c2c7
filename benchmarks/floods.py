"""What floods of connections, heads, bodies and messages cost the proxy.

For each flood: how much the proxy's resident memory grew at its peak, the processor time it took, the
slowest answer to a health check meanwhile, and what became of it. Give another checkout as
``--before`` to put it through the same floods in turn.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import os
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import HERE, LOAD_CORE, CannotMeasure, Report, Row, free_port, main, pinned
from benchmarks.product import Product, product

MIB = 1 << 20

UPLOADS, UPLOAD_BYTES = 500, 20_000_000
MESSAGE = 699 * MIB
READERS = 200


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", metavar="DIRECTORY", help="another checkout to compare with")
    parser.add_argument("--hold", type=float, default=70.0, help="seconds to hold idle connections")


def run(given: argparse.Namespace) -> Report:
    hold = min(given.hold, 3.0) if given.quick else given.hold
    trees = {"before": Path(given.before)} if given.before else {}
    trees["this"] = HERE.parent
    os.sched_setaffinity(0, {LOAD_CORE})
    floods: dict[str, Flood] = {
        "header lines without end, 3 s": headers,
        "500 held uploads of 20 MB": held_uploads,
        "one WebSocket message of 699 MiB": message,
        "fragments of one byte, 4 s": fragments,
        "200 clients that do not read 100 MB": deaf_readers,
        f"1,000 silent, 1,000 half heads, 500 half bodies, {hold:.0f} s": lambda running: idle(
            running, hold
        ),
    }
    report = Report("floods", "Floods", {"hold_seconds": hold})
    for title, flood in floods.items():
        rows: list[Row] = []
        for name, tree in trees.items():
            with source(tree), product(service, boot_seconds=300.0 * (flood is held_uploads)) as on:
                rows.append({"tree": name, **measure(on, flood)})
        report.tables[title] = rows
    return report


Flood = Callable[[Product], str]
"""Floods a proxy, and says what became of it."""


@contextlib.contextmanager
def source(tree: Path) -> Iterator[None]:
    """Have the programs run from a checkout."""
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tree)
    try:
        yield
    finally:
        if old is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = old


def service(_: Path) -> tuple[Sequence[str], int]:
    """The program that takes and sends large bodies."""
    port = free_port()
    program = str(HERE / "bulk_upstream.py")
    return pinned(LOAD_CORE, [sys.executable, program, "--port", str(port)]), port


def measure(running: Product, flood: Flood) -> Mapping[str, str | float]:
    running.wake()
    if flood is not held_uploads:
        running.wait_phase("ready")
    time.sleep(1.0)
    watch = Watch(running)
    before = watch.rss()
    watch.forget_peak()
    cpu = watch.cpu()
    with watch.health():
        became = flood(running)
    return {
        "RSS before MiB": round(before),
        "grew MiB": round(watch.peak() - before, 1),
        "CPU s": round(watch.cpu() - cpu, 2),
        "slowest health check ms": round(1000 * watch.slowest),
        "what became of it": became,
    }


@dataclass
class Watch:
    """The proxy's process while it is flooded."""

    running: Product
    slowest: float = 0.0

    @property
    def _process(self) -> psutil.Process:
        return psutil.Process(self.running.process.pid)

    def cpu(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> float:
        return float(self._process.memory_info().rss / MIB)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.running.process.pid}/clear_refs").write_text("5")

    def peak(self) -> float:
        page = Path(f"/proc/{self.running.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", page)[0]) / 1024

    @contextlib.contextmanager
    def health(self) -> Iterator[None]:
        """Ask for the health in a thread, ten times a second."""
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.1):
                began = time.monotonic()
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection = http.client.HTTPConnection(
                        "127.0.0.1", self.running.port, timeout=30
                    )
                    connection.request("GET", "/_qwenctl/healthz")
                    connection.getresponse().read()
                    connection.close()
                self.slowest = max(self.slowest, time.monotonic() - began)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(35)


# The floods


def connect(running: Product, content: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", running.port), 10)
    if content:
        connection.sendall(content)
    return connection


def pour(connection: socket.socket, pieces: Iterator[bytes]) -> tuple[int, str]:
    """Send until the peer answers or hangs up; return the bytes sent and the answer's status."""
    sent = 0
    connection.settimeout(1.0)
    with contextlib.suppress(OSError):
        for piece in pieces:
            connection.sendall(piece)
            sent += len(piece)
            if select.select([connection], [], [], 0)[0]:
                break
    status = "no answer"
    with contextlib.suppress(OSError):
        answer = connection.recv(4096)
        status = answer.split(b"\r\n")[0].decode("latin-1") if answer else "closed"
    return sent, status


def for_seconds(seconds: float, piece: bytes) -> Iterator[bytes]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield piece


def headers(running: Product) -> str:
    with connect(running, b"GET /x HTTP/1.1\r\nHost: localhost\r\n") as connection:
        sent, status = pour(connection, for_seconds(3.0, b"X-A: b\r\n" * 8192))
    return f"{sent / MIB:.1f} MiB sent, {status}"


def upload(size: int) -> bytes:
    head = f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return f"POST /x HTTP/1.1\r\nHost: localhost\r\n{head}".encode()


def held_uploads(running: Product) -> str:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(connect(running, upload(UPLOAD_BYTES))) for _ in range(UPLOADS)]
        piece, taken = bytes(256 << 10), 0
        for connection in made:
            connection.setblocking(False)
            left = UPLOAD_BYTES
            with contextlib.suppress(BlockingIOError):
                while left:
                    count = connection.send(piece[:left])
                    left, taken = left - count, taken + count
        time.sleep(3.0)
        return f"{open_still(made)} still held; proxy and kernel took {taken / MIB:.0f} MiB"


def frame(size: int, opcode: int, *, fin: bool) -> bytes:
    """The head of a client's frame, with a mask that changes nothing (RFC 6455 §5.2)."""
    first = opcode | (0x80 if fin else 0)
    if size < 126:
        return struct.pack("!BBI", first, 0x80 | size, 0)
    return struct.pack("!BBQI", first, 0x80 | 127, size, 0)


@contextlib.contextmanager
def websocket(running: Product) -> Iterator[socket.socket]:
    key = base64.b64encode(bytes(16)).decode()
    lines = (
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    with connect(running, lines.encode()) as connection:
        if b" 101 " not in connection.recv(4096):
            raise CannotMeasure("the WebSocket was refused")
        yield connection


def message(running: Product) -> str:
    pieces = iter([bytes(MIB)] * (MESSAGE // MIB))
    with websocket(running) as connection:
        connection.sendall(frame(MESSAGE, 0x2, fin=True))
        sent, _ = pour(connection, pieces)
        time.sleep(2.0)
    whole = "taken whole" if sent == MESSAGE else "closed"
    return f"{whole} after {sent / MIB:.0f} MiB"


def fragments(running: Product) -> str:
    piece = (frame(1, 0x0, fin=False) + b"a") * 10_000
    with websocket(running) as connection:
        connection.sendall(frame(1, 0x1, fin=False) + b"a")
        sent, _ = pour(connection, for_seconds(4.0, piece))
    return f"{sent / 7:,.0f} taken"


def deaf_readers(running: Product) -> str:
    request = b"GET /100000000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(connect(running, request)) for _ in range(READERS)]
        time.sleep(4.0)
        return f"{len(made)} waited for"


def idle(running: Product, hold: float) -> str:
    half_head, half_body = b"GET /x HTTP/1.1\r\nHost: localhost\r\n", upload(1000) + b"x"
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(connect(running, content))
            for content, count in ((b"", 1000), (half_head, 1000), (half_body, 500))
            for _ in range(count)
        ]
        time.sleep(hold)
        return f"{open_still(made):,} still open"


def open_still(connections: Sequence[socket.socket]) -> int:
    """How many have neither been closed nor answered."""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return len(connections) - len(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
