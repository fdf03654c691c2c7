"""Serve the page of the config file that `qwenctl init` writes; needs only Python.

python -m qwenctl.cli.demo.sample PORT
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PAGE = b"""<!doctype html>
<meta charset="utf-8">
<title>qwenctl sample</title>
<h1>It works</h1>
<p>This page comes from the instance. Now put your WebUI into qwenctl.toml
(<code>qwenctl config path</code> says where it is) in place of this sample.</p>
"""


class _Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(_PAGE)))
        self.end_headers()
        self.wfile.write(_PAGE)

    def log_message(self, *_: object) -> None:
        """Log nothing: the agent's probes would fill the boot log."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Page).serve_forever()
