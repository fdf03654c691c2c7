"""Chat with a Gradio app over HTTP, as its page in the browser does.

The steps are those that Chromium was seen to make with Gradio 5.49 and 6.31: read ``/config``, upload
the picture, join the queue, and read the session's event stream until the server closes it. Works
with any app that names its chat endpoint ``chat``, as ``gr.ChatInterface`` does.
"""

from __future__ import annotations

import json
import mimetypes
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from qwenctl.errors import ExitCode, UserError

__all__ = ["ChatError", "ChatResult", "ChatTimeout", "chat", "sample_png"]

CONNECT_SECONDS = 10.0
"""How long a connection may take to open, whatever the timeout of the chat."""


class ChatError(UserError):
    """The app could not be reached, refused a request, or failed to answer."""

    exit_code = ExitCode.FAILED


class ChatTimeout(ChatError):
    """The answer was not complete in the given time."""

    exit_code = ExitCode.TIMEOUT


@dataclass(frozen=True)
class ChatResult:
    """A complete answer. Times are seconds since the message was sent, after the upload."""

    text: str
    first_token_seconds: float
    seconds: float


def chat(
    base_url: str,
    text: str,
    image_path: str | Path | None = None,
    session: requests.Session | None = None,
    timeout: float = 120.0,
) -> ChatResult:
    """Send one message, with a picture if one is given, and wait for the whole answer.

    ``session`` carries cookies and headers, such as a login or an API key. ``timeout`` is in seconds
    for all steps together, a wait for the GPU to wake up included.

    Raises:
        ChatTimeout: the answer was not complete in time.
        ChatError: anything else that went wrong, in one sentence.
    """
    own = requests.Session() if session is None else session
    try:
        app = _App(base_url, own, timeout)
        return app.chat(text, None if image_path is None else Path(image_path))
    finally:
        if session is None:
            own.close()


class _App:
    """One visit to the app: what a page holds between loading and the end of one answer."""

    def __init__(self, base_url: str, session: requests.Session, timeout: float) -> None:
        self._base = base_url.rstrip("/")
        self._http = session
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout

    def chat(self, text: str, picture: Path | None) -> ChatResult:
        config = self._json("GET", "/config")
        endpoint = _chat_endpoint(config, self._base)
        api = str(config.get("api_prefix", ""))
        files = [] if picture is None else [self._upload(api, picture)]
        session_hash = secrets.token_hex(6)
        sent = time.monotonic()
        joined = self._json(
            "POST",
            f"{api}/queue/join",
            json={
                "data": [{"text": text, "files": files}]
                # The other inputs are the session's state, which the server fills in.
                + [None] * (len(endpoint.get("inputs", [None])) - 1),
                "event_data": None,
                "fn_index": endpoint["id"],
                "trigger_id": None,
                "session_hash": session_hash,
            },
        )
        if "event_id" not in joined:
            raise ChatError(f"{self._base} did not accept the message: {joined}.")
        return self._answer(api, session_hash, sent)

    def _upload(self, api: str, picture: Path) -> dict[str, Any]:
        try:
            content = picture.read_bytes()
        except OSError as error:
            raise ChatError(f"Cannot read the picture {picture}: {error.strerror}.") from None
        paths = self._json(
            "POST",
            f"{api}/upload",
            params={"upload_id": secrets.token_hex(6)},
            files={"files": (picture.name, content)},
        )
        if not (isinstance(paths, list) and len(paths) == 1 and isinstance(paths[0], str)):
            raise ChatError(f"{self._base} answered the upload with something else than one path.")
        return {
            "path": paths[0],
            "url": f"{self._base}{api}/file={paths[0]}",
            "orig_name": picture.name,
            "size": len(content),
            "mime_type": mimetypes.guess_type(picture.name)[0],
            "meta": {"_type": "gradio.FileData"},
        }

    def _answer(self, api: str, session_hash: str, sent: float) -> ChatResult:
        """Read the session's events until the server closes the stream."""
        text, first, done = "", None, None
        outputs: list[Any] | None = None
        for message in self._events(f"{api}/queue/data", {"session_hash": session_hash}):
            kind, output = message.get("msg"), message.get("output") or {}
            if kind == "process_generating" and message.get("success", True):
                # The first one is whole, each later one is the difference to the one before.
                data = output.get("data", [])
                outputs = data if outputs is None else _patched(outputs, data)
                if first is None and outputs and outputs[0]:
                    first = time.monotonic()
            elif kind in {"process_completed", "process_generating"}:
                if not message.get("success"):
                    reason = output.get("error") or message.get("title") or "no reason given"
                    raise ChatError(f"The app at {self._base} failed to answer: {reason}.")
                done = time.monotonic()
                data = output.get("data") or outputs or [""]
                text = data[0] if isinstance(data[0], str) else json.dumps(data[0])
            elif kind in {"unexpected_error", "server_stopped"}:
                reason = message.get("message") or "the server stopped"
                raise ChatError(f"The app at {self._base} gave up: {reason}.")
            elif kind == "close_stream":
                break
        if done is None:
            raise ChatError(f"{self._base} ended the event stream before the answer was complete.")
        return ChatResult(text, (first or done) - sent, done - sent)

    def _json(self, method: str, path: str, **kwargs: Any) -> Any:
        with self._request(method, path, **kwargs) as response:
            try:
                return response.json()
            except requests.JSONDecodeError:
                raise ChatError(
                    f"{method} {self._base}{path} did not answer with JSON; is a Gradio app there?"
                ) from None
            except requests.RequestException as error:
                raise self._failure(method, path, error) from None

    def _events(self, path: str, params: dict[str, str]) -> Iterator[dict[str, Any]]:
        """The JSON messages of an event stream (each is one ``data:`` line)."""
        headers = {"Accept": "text/event-stream"}
        with self._request("GET", path, params=params, headers=headers, stream=True) as response:
            try:
                # Small chunks, or words would wait in the client's buffer.
                for line in response.iter_lines(chunk_size=None):
                    self._remaining()
                    if line.startswith(b"data:"):
                        yield json.loads(line[5:])
            except ValueError:
                raise ChatError(f"GET {self._base}{path} sent an event that is no JSON.") from None
            except requests.RequestException as error:
                raise self._failure("GET", path, error) from None

    def _request(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        remaining = self._remaining()
        try:
            response = self._http.request(
                method,
                self._base + path,
                timeout=(min(CONNECT_SECONDS, remaining), remaining),
                allow_redirects=False,
                **kwargs,
            )
            if response.status_code != 200:
                with response:
                    raise ChatError(
                        f"{method} {self._base}{path} answered {response.status_code}"
                        f"{_reason(response)}."
                    )
        except requests.RequestException as error:
            raise self._failure(method, path, error) from None
        return response

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise ChatTimeout(f"No complete answer from {self._base} in {self._timeout:g} s.")
        return remaining

    def _failure(self, method: str, path: str, error: requests.RequestException) -> ChatError:
        self._remaining()  # the usual reason, and then the better message
        where = f"{method} {self._base}{path}"
        if isinstance(error, requests.ConnectTimeout):
            return ChatTimeout(f"{where}: no connection in {CONNECT_SECONDS:g} s.")
        if isinstance(error, requests.ReadTimeout):
            return ChatTimeout(f"No complete answer from {self._base} in {self._timeout:g} s.")
        lost = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
        if isinstance(error, lost) and not isinstance(error, requests.exceptions.SSLError):
            return ChatError(f"{where}: the connection was refused or lost.")
        return ChatError(f"{where} failed: {str(error).rstrip('.')}.")


def _chat_endpoint(config: Any, base: str) -> dict[str, Any]:
    """The entry of the endpoint named ``chat`` in the app's configuration."""
    found = config.get("dependencies") if isinstance(config, dict) else None
    if not isinstance(found, list):
        raise ChatError(f"{base}/config is not the configuration of a Gradio app.")
    for endpoint in found:
        if endpoint.get("api_name") == "chat":
            return dict(endpoint)
    raise ChatError(f"The Gradio app at {base} has no endpoint named 'chat'.")


def _reason(response: requests.Response) -> str:
    """What the body of a refusal says, as ``: …``; empty if it is neither problem+json nor Gradio's."""
    try:
        body = response.json()
    except (requests.RequestException, ValueError):
        return ""
    said = (body.get("detail") or body.get("title")) if isinstance(body, dict) else None
    return f": {said.rstrip('.')}" if isinstance(said, str) else ""


def _patched(outputs: list[Any], differences: list[Any]) -> list[Any]:
    """The outputs after Gradio's differences, one list of (action, path, value) for each output."""
    result = list(outputs)
    for index, edits in enumerate(differences[: len(result)]):
        for action, path, value in edits:
            result[index] = _edited(result[index], path, action, value)
    return result


def _edited(target: Any, path: list[Any], action: str, value: Any) -> Any:
    if path:
        key, rest = path[0], path[1:]
        if rest or action == "append":
            target[key] = _edited(target[key], rest, action, value)
        elif action == "add" and isinstance(target, list):
            target.insert(int(key), value)
        elif action == "delete":
            del target[key]
        else:  # replace a part, or add a key
            target[key] = value
        return target
    return target + value if action == "append" else value


def sample_png(width: int = 96, height: int = 64) -> bytes:
    """A small picture to send: a red square between a blue sky and a green field (PNG, RGB)."""
    side = min(width, height) // 3
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # the filter of each row: none
        for x in range(width):
            in_square = abs(2 * x - width) <= side and abs(2 * y - height) <= side
            sky = 2 * y < height
            rows += bytes((220, 30, 30) if in_square else (40, 90, 210) if sky else (50, 170, 60))

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(rows)))
        + chunk(b"IEND", b"")
    )
