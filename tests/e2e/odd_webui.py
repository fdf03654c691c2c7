"""A WebUI for tests with odd pages.

``/page`` ends the program, whose health is perfect otherwise. ``/links``, once the GPU sleeps, has
the browser prefetch and prerender pages, and some seconds later opens the prerendered one.
"""

from __future__ import annotations

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LINKS = b"""<!doctype html>
<title>Links</title>
<script>
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const phase = async () => (await (await fetch("/_qwenctl/api/status")).json()).phase;
const add = (name, values) => document.head.append(
  Object.assign(document.createElement(name), values));
(async () => {
  while ((await phase()) !== "off") await pause(200);
  add("link", { rel: "prefetch", href: "/prefetched" });
  add("script", { type: "speculationrules", textContent: JSON.stringify({
    prefetch: [{ urls: ["/speculated"], eagerness: "immediate" }],
    prerender: [{ urls: ["/_qwenctl/?next=/links"], eagerness: "immediate" }],
  }) });
  await pause(4000);
  location.href = "/_qwenctl/?next=/links";
})();
</script>
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/page"):
            os._exit(1)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(LINKS)))
        self.end_headers()
        self.wfile.write(LINKS)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
