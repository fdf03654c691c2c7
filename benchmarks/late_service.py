"""The service of the node measurement: listens late, and notes when."""

from __future__ import annotations

import argparse
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True, help="where to note the time")
    parser.add_argument("--load", type=Path, required=True, help="a file: seconds until it listens")
    given = parser.parse_args()
    if given.load.exists():
        time.sleep(float(given.load.read_text()))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    with given.log.open("a") as log:
        log.write(f"{time.time():.6f}\n")
    server.serve_forever(poll_interval=0.01)
    return 0


if __name__ == "__main__":
    sys.exit(main())
