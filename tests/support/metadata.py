"""A cloud's metadata service in the mode that needs a token, as a real HTTP server.

``python -m tests.support.metadata aws`` runs one that has nothing to say.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gpu_node.machine.metadata import CloudName

HEADERS = {"aws": "X-aws-ec2-metadata-token", "aliyun": "X-aliyun-ecs-metadata-token"}
PATHS = {
    "aws": "/latest/meta-data/spot/instance-action",
    "aliyun": "/latest/meta-data/instance/spot/termination-time",
}


def stamp(moment: float) -> str:
    """Unix seconds as both clouds write them."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class MetadataService:
    """Its behaviour is set by its attributes, which may be changed while it runs."""

    def __init__(self, cloud: CloudName) -> None:
        self.notice: str | None = None
        """What it says at the notice's path; None: 404."""
        self.status = 200
        """The status of the notice, if there is one."""
        self.hangs = False
        self.skew = 0.0
        """Its clock minus ours, in seconds."""
        self.token = 0
        """The number of the token that counts; the next one is handed out with each PUT."""
        self.asked: list[tuple[str, str, int]] = []
        """Method, path and status of each answer."""
        self._cloud = cloud
        self._closing = threading.Event()
        self._news = threading.Condition()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                service.answer(self)

            def do_GET(self) -> None:
                service.answer(self)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate((timestamp or time.time()) + service.skew, usegmt=True)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def announce(self, seconds: float, action: str = "stop") -> None:
        """The instance is taken back in so many seconds."""
        when = stamp(time.time() + self.skew + seconds)
        aws = f'{{"action": "{action}", "time": "{when}"}}'
        self.notice = aws if self._cloud == "aws" else when + "\n"

    def answer(self, handler: Any) -> None:
        if self.hangs:
            self._closing.wait(60)
        header = HEADERS[self._cloud]
        status, text = 404, "not found"
        if handler.command == "PUT":
            seconds = handler.headers.get(f"{header}-ttl-seconds", "")
            status = 200 if seconds.isdigit() and handler.path == "/latest/api/token" else 400
            self.token += status == 200
            text = f"token-{self.token}"
        elif handler.headers.get(header) != f"token-{self.token}":
            status, text = 401 if self._cloud == "aws" else 403, ""
        elif handler.path == PATHS[self._cloud] and self.notice is not None:
            status, text = self.status, self.notice
        with self._news:
            self.asked.append((handler.command, handler.path, status))
            self._news.notify_all()
        with contextlib.suppress(OSError):  # whoever asked may have given up
            handler.send_response(status)
            if 300 <= status < 400:
                handler.send_header("Location", handler.path)
            handler.send_header("Content-Length", str(len(text.encode())))
            handler.end_headers()
            handler.wfile.write(text.encode())

    def wait_asked(self, times: int, timeout: float = 20.0) -> None:
        """Wait until it has been asked so many times since it began."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.asked) >= times, timeout), self.asked

    def __enter__(self) -> MetadataService:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A metadata service that has nothing to say.")
    parser.add_argument("cloud", choices=sorted(HEADERS))
    with MetadataService(parser.parse_args().cloud) as service:
        print(service.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
