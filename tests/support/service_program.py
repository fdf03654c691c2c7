"""A service for tests: an HTTP server that does as its arguments say."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("port", type=int)
    add("--host", default="127.0.0.1", help="the address to listen on")
    add("--say", action="append", default=[], help="a line to print first")
    add("--load", type=float, default=0.0, help="seconds until it listens")
    add("--active", type=Path, help="the file with the number of generations")
    add("--broken", type=Path, help="while there is such a file: answer with 500")
    add("--child", action="store_true", help="have a child that ignores SIGTERM")
    add("--runaway", action="store_true", help="have a child in a session of its own")
    add("--stubborn", action="store_true", help="ignore SIGTERM")
    add("--stamp", type=Path, help="where to write the time of listening (monotonic)")
    add("--env", type=Path, help="where to write the environment")
    options = parser.parse_args()
    for line in options.say:
        print(line, flush=True)
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(120)",
    ]
    if options.child:
        subprocess.Popen(sleep)
    if options.runaway:
        subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL)
    if options.env:
        import os

        options.env.write_text(json.dumps(dict(os.environ)))
    time.sleep(options.load)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics" and options.active:
                body = f'# HELP x\nx_running{{model="a}} b"}} {options.active.read_text()}\nx_running{{model="c"}} 0.0\n'
            elif self.path == "/active" and options.active:
                body = json.dumps({"active": int(options.active.read_text())})
            else:
                body = "hello"
            broken = options.broken is not None and options.broken.exists()
            self.send_response(500 if broken else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((options.host, options.port), Handler)
    if options.stamp:
        options.stamp.write_text(str(time.monotonic()))
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main()
