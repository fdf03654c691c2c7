"""Have a service infer once, which some services must do before they count as ready."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from qwenctl.protocol.messages import Readiness

LOOK = 0.1
"""Seconds between two checks of whether the inference is still wanted."""

CONNECT = 5.0
"""Seconds that a connection to loopback may take."""

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024


class InferenceFailed(Exception):
    """The inference did not succeed; the text says why, in one line for a person."""


def infer_once(
    base_url: str,
    readiness: Readiness,
    *,
    api_key: str = "",
    unwanted: Callable[[], bool] = lambda: False,
) -> None:
    """Have the service infer once; returns when it has.

    The connection is aborted, so that the service may notice, as soon as ``unwanted`` says so, and
    after ``readiness.inference_timeout`` seconds.

    Args:
        base_url: where the service answers.
        readiness: says which inference.
        api_key: openai: sent as a bearer token, unless empty.
        unwanted: whether to give up; asked ten times a second.

    Raises:
        InferenceFailed: the inference failed, or it was given up.
    """
    infer = _openai if readiness.inference == "openai" else _gradio
    connection = _Connection(base_url, api_key if infer is _openai else "")
    failures: list[str] = []
    done = threading.Event()

    def work() -> None:
        try:
            infer(connection, readiness)
        except InferenceFailed as error:
            failures.append(str(error))
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"the connection broke: {_line(error) or type(error).__name__}")
        except Exception as error:
            # Whatever it was, the service is not ready. The text is left out: it may hold the key.
            failures.append(f"it was not understood ({type(error).__name__})")
        finally:
            connection.close()
            done.set()

    threading.Thread(target=work, name="inference", daemon=True).start()
    deadline = time.monotonic() + readiness.inference_timeout
    while not done.wait(LOOK):
        late = time.monotonic() >= deadline
        if late or unwanted():
            connection.abort()
            text = f"no answer within {readiness.inference_timeout:g} s" if late else "given up"
            raise InferenceFailed(text)
    if failures:
        raise InferenceFailed(failures[0])


def _openai(connection: _Connection, readiness: Readiness) -> None:
    """Have the chat endpoint generate one token."""
    model = readiness.model
    if not model:
        path = "/v1/models"
        listed = connection.json("GET", path)
        try:
            model = listed["data"][0]["id"]
        except (LookupError, TypeError):
            raise InferenceFailed(f"GET {path} lists no model") from None
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
    }
    path = "/v1/chat/completions"
    answer = connection.json("POST", path, body)
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise InferenceFailed(f"POST {path} answered without a choice")


def _gradio(connection: _Connection, readiness: Readiness) -> None:
    """Call an endpoint and wait for its end. Gradio 5 and 6 have the same two steps."""
    path = f"/gradio_api/call/{quote(readiness.api_name.lstrip('/'))}"
    joined = connection.json("POST", path, {"data": readiness.data})
    if not isinstance(joined, dict) or not isinstance(joined.get("event_id"), str):
        raise InferenceFailed(f"POST {path} answered without an event_id")
    event = ""
    for line in connection.lines(f"{path}/{quote(joined['event_id'])}"):
        if line.startswith("event:"):
            event = line[6:].strip()
            if event == "complete":
                return
        elif event == "error" and line.startswith("data:"):
            raise InferenceFailed(f"{readiness.api_name} failed: {_reason(line[5:])}")
    raise InferenceFailed(f"{readiness.api_name} ended without a result")


def _reason(data: str) -> str:
    """Return Gradio's reason: null, a text, or an object with one of them as ``error``."""
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if isinstance(found, dict):
        found = found.get("error")
    return _line(found) if isinstance(found, str) and found else "its log says why"


class _Connection:
    """HTTP to one service, one request after the other, that another thread can abort."""

    def __init__(self, base_url: str, api_key: str = "") -> None:
        url = urlsplit(base_url)
        self._headers = {"User-Agent": "qwenctl-node", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._address = (url.hostname or "", url.port or 80)
        self._lock = threading.Lock()
        self._http: http.client.HTTPConnection | None = None
        # Kept apart, because http.client lets go of it while the answer is still being read.
        self._sock: socket.socket | None = None
        self._aborted = False

    def abort(self) -> None:
        """Break off the request under way, from any thread, and refuse later ones."""
        with self._lock:
            self._aborted = True
            if self._sock is not None:
                with contextlib.suppress(OSError):  # it has ended by itself
                    self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._http is not None:
                self._http.close()
            self._http = self._sock = None

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON of the answer.

        Raises:
            InferenceFailed: a status other than 2xx, or no JSON.
        """
        content = self._request(method, path, body).read(MAX_BODY_BYTES)
        try:
            return json.loads(content)
        except ValueError:
            raise InferenceFailed(f"{method} {path} answered with no JSON") from None

    def lines(self, path: str) -> Iterator[str]:
        """Yield the lines of an event stream, as they come."""
        response = self._request("GET", path)
        while line := response.readline(MAX_LINE_BYTES):
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def _request(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        self.close()
        # Once connected there is no timeout but that of the whole, after which it is aborted.
        connection = http.client.HTTPConnection(*self._address, timeout=CONNECT)
        connection.connect()
        connection.sock.settimeout(None)
        with self._lock:
            self._http, self._sock = connection, connection.sock
            if self._aborted:
                raise InferenceFailed("given up")
        content = None if body is None else json.dumps(body).encode()
        kind = {} if content is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, {**self._headers, **kind})
        response = connection.getresponse()
        if not 200 <= response.status < 300:
            raise InferenceFailed(
                f"{method} {path} answered {response.status}{_detail(response.read(4096))}"
            )
        return response


def _detail(body: bytes) -> str:
    """Return an error body's message.

    vLLM has ``error.message`` or ``message``, Gradio and FastAPI ``detail``.
    """
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    if isinstance(found, dict):
        error = found.get("error")
        error = error.get("message") if isinstance(error, dict) else error
        for text in (error, found.get("message"), found.get("detail")):
            if isinstance(text, str) and text:
                return f": {_line(text)}"
    return ""


def _line(text: object) -> str:
    """Shorten to one line of at most 200 characters."""
    return " ".join(str(text).split())[:200]
