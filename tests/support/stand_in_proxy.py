"""A proxy's node endpoints, as small as they can be: a real HTTP server that speaks `qwenctl.protocol.messages`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qwenctl.protocol.messages import HELLO_PATH, Answer, Command, Hello, Report, Spec
from qwenctl.protocol.signing import NONCE_HEADER, BadSignature, Stale, check_message, sign_answer

SECRET = "the secret of this test's deployment"


class StandInProxy:
    """Answers hellos with `spec`; keeps what it was told.

    Its behaviour is set by its attributes, which may be changed while it runs.
    """

    def __init__(self, spec: Spec | None = None, port: int = 0) -> None:
        self.spec = spec
        self.clock: Callable[[], float] = time.time
        self.secret = SECRET
        """By which messages are checked."""
        self.signs_with = SECRET
        self.status: int | None = None
        """An answer status to give to everything, whatever it is."""
        self.replays: tuple[int, bytes, dict[str, str]] | None = None
        """An earlier answer to give to everything."""
        self.commands: list[Command] = []
        self.hello_again = False
        self.unneeded_for = 0.0
        self.hellos: list[Hello] = []
        self.reports: list[Report] = []
        self.arrivals: list[float] = []
        """When each report came, on the monotonic clock."""
        self.attempts = 0
        self.last_answer: tuple[int, bytes, dict[str, str]] | None = None
        self._news = threading.Condition()
        self._nonces: set[str] = set()
        self._connections: list[socket.socket] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, content, headers = stand_in._answer(self.path, body, self.headers)
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def get_request(self) -> Any:
                connection, address = super().get_request()
                stand_in._connections.append(connection)
                return connection, address

            def handle_error(self, *args: Any) -> None:
                pass  # an agent that was killed in the middle of a message

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:  # kept ones too, as when a process ends
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> StandInProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, what: Callable[[StandInProxy], Any], timeout: float = 15.0) -> Any:
        """Wait until ``what(self)`` is true, and return it; looked at after each message."""
        with self._news:
            found = self._news.wait_for(lambda: what(self), timeout)
        assert found, f"not within {timeout} s; last report: {self.reports[-1:] or 'none'}"
        return found

    def wait_report(self, what: Callable[[Report], Any], timeout: float = 15.0) -> Report:
        """The first report, from the first one ever, for which ``what`` is true."""
        return self.wait(lambda _: next((r for r in self.reports if what(r)), None), timeout)

    def forget(self) -> None:
        """Forget the reports so far."""
        with self._news:
            self.reports.clear()
            self.arrivals.clear()

    def _answer(self, path: str, body: bytes, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        with self._news:
            try:
                answer = self._hear(path, body, headers)
            finally:
                self.attempts += 1
                self._news.notify_all()
            return answer

    def _hear(self, path: str, body: bytes, headers: Any) -> tuple[int, bytes, dict[str, str]]:
        if self.replays is not None:
            return self.replays
        now = self.clock()
        answer = Answer(server_time=now, start_seq=7, unneeded_for=self.unneeded_for)
        status = 200
        nonce = headers.get(NONCE_HEADER, "")
        try:
            check_message(self.secret, "POST", path, body, headers, now=now)
            assert nonce not in self._nonces, "the agent has used a nonce twice"
            self._nonces.add(nonce)
        except Stale as error:
            status, answer = 401, Answer(server_time=now, refused=str(error))
        except BadSignature as error:
            status, answer = 401, Answer(server_time=now, refused=str(error))
        else:
            if self.status is not None:
                status = self.status
                answer = Answer(server_time=now, refused="no", hello_again=status == 409)
            elif path == HELLO_PATH:
                self.hellos.append(Hello.model_validate_json(body))
                answer = answer.model_copy(update={"spec": self.spec})
            elif self.hello_again:
                self.hello_again = False
                status, answer = 409, Answer(server_time=now, hello_again=True)
            else:
                self.arrivals.append(time.monotonic())
                self.reports.append(report := Report.model_validate_json(body))
                stale = self.spec is not None and report.spec_version != self.spec.version
                answer = answer.model_copy(
                    update={
                        "spec": self.spec if stale else None,
                        "commands": tuple(self.commands),
                    }
                )
                self.commands = []
        content = answer.model_dump_json().encode()
        self.last_answer = (status, content, sign_answer(self.signs_with, nonce, status, content))
        return self.last_answer
