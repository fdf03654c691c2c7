"""A WebUI for tests: answers, streams, heartbeats, and keeps a journal of what was cut.

The journal has one JSON line for each request that begins or ends, and one for the end of the
program, with the number of requests then running (heartbeats, which nobody uses, not counted).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from urllib.parse import parse_qs, urlsplit


class Journal:
    """The running requests, and a file that says when they began and ended."""

    def __init__(self, file: Path | None) -> None:
        self._file = None if file is None else os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        # Reentrant: the signal handler runs in the main thread, wherever that is.
        self._lock = threading.RLock()
        self._active = 0

    def note(self, event: str, path: str = "", change: int = 0) -> None:
        with self._lock:
            self._active += change
            if self._file is not None:
                line = {"time": time.time(), "event": event, "path": path, "active": self._active}
                os.write(self._file, json.dumps({"pid": os.getpid(), **line}).encode() + b"\n")


class Handler(BaseHTTPRequestHandler):
    """``/count?seconds=S``, ``/stream?seconds=S``, ``…/heartbeat/…``; anything else says hello."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    journal: Journal

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        seconds = float(query.get("seconds", ["0"])[0])
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/heartbeat" in url.path:
            self._stream("data: ALIVE\n\n", seconds or 120.0, 0.5)
            return
        used = url.path != "/"
        if used:
            self.journal.note("begin", self.path, +1)
        try:
            if url.path.endswith("/stream"):
                self._stream("word\n", seconds, 0.1)
            else:
                time.sleep(seconds)
                body = json.dumps({"pid": os.getpid()}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
        finally:
            if used:
                self.journal.note("end", self.path, -1)

    def _stream(self, text: str, seconds: float, interval: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._chunk(text)
            time.sleep(interval)
        self._chunk("end\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 2048
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client went away; the journal has the end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("port", type=int, help="listen on this port of 127.0.0.1")
    add("--journal", type=Path, help="append to this file")
    add("--load", type=float, default=0.0, help="seconds until it listens")
    add("--crash", action="store_true", help="end with an error at once")
    options = parser.parse_args()
    if options.crash:
        sys.exit("CUDA out of memory")
    journal = Handler.journal = Journal(options.journal)

    def stop(number: int, frame: FrameType | None) -> None:
        journal.note("stopped")
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    time.sleep(options.load)
    Server(("127.0.0.1", options.port), Handler).serve_forever(poll_interval=1.0)


if __name__ == "__main__":
    main()
