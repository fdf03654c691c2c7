"""A program that answers like an OpenAI-compatible server such as vLLM, as its arguments say."""

from __future__ import annotations

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["OpenAIServer"]


class OpenAIServer(ThreadingHTTPServer):
    """Its behaviour is set by its attributes, which may be changed while it runs."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.models = ["qwen3-vl", "another"]
        self.api_key = ""
        self.answers: list[tuple[int, bytes]] = []
        """Status and body of the first chat completions; later ones succeed."""
        self.hangs = False
        """Chat completions are answered by headers and then nothing, until the client goes."""
        self.asked: list[dict[str, Any]] = []
        """The bodies of the chat completions."""
        self.gone = threading.Event()
        """A client has gone while it was left hanging."""

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._may():
                data = [{"id": name, "object": "model"} for name in self.server.models]
                self._answer(200, json.dumps({"object": "list", "data": data}).encode())
        else:
            self._answer(200 if self.path == "/health" else 404, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self._answer(404, b'{"detail":"Not Found"}')
        if not self._may():
            return None
        self.server.asked.append(body)
        if self.server.hangs:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.connection.settimeout(60)
            if self.rfile.read(1) == b"":
                self.server.gone.set()
            return None
        if self.server.answers:
            return self._answer(*self.server.answers.pop(0))
        choice = {"index": 0, "message": {"role": "assistant", "content": "H"}}
        answer = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
        return self._answer(200, json.dumps(answer).encode())

    def _may(self) -> bool:
        key = self.server.api_key
        if key and self.headers.get("Authorization") != f"Bearer {key}":
            self._answer(401, b'{"error":"Unauthorized"}')
            return False
        return True

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        print(f"{time.monotonic():.3f} {args[0] % args[1:]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("port", type=int)
    add("--api-key", default="")
    add("--fail", type=int, default=0, help="so many completions fail first")
    add("--hang", action="store_true", help="completions never end")
    options = parser.parse_args()
    server = OpenAIServer(options.port)
    server.api_key, server.hangs = options.api_key, options.hang
    failure = b'{"error":{"message":"CUDA out of memory","code":500}}'
    server.answers = [(500, failure)] * options.fail
    server.serve_forever(0.02)


if __name__ == "__main__":
    main()
