"""How the fake cloud is asked: Alibaba Cloud's RPC style over HTTP, signed with HMAC-SHA1.

ECS and RAM are at the same address; a request says by its version which it is for. Each request must
be signed with a known key, at most 15 minutes old and not a repetition. `Fault`
says what goes wrong with which action.
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import hmac
import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlsplit

from tests.support.fake_ecs.cloud import ECS, RAM, Cloud
from tests.support.fake_ecs.errors import ApiError

__all__ = ["FakeEcs", "Fault", "Key"]

WINDOW = 15 * 60
"""Seconds that a request's timestamp may be off."""

FaultKind = Literal["error", "slow", "trickle", "cut_before", "cut_after", "garbage"]


@dataclass(frozen=True)
class Key:
    """An AccessKey, with a token if it is a temporary one."""

    id: str
    secret: str
    token: str = ""


@dataclass
class Fault:
    """What goes wrong with the next ``times`` calls of ``action``.

    ==========  =========================================================================
    error       refused with ``status`` and ``code``
    slow        accepted; the answer comes after ``seconds``
    trickle     accepted; the answer comes byte by byte, ``seconds`` apart
    cut_before  the connection is cut, nothing was accepted
    cut_after   accepted, then the connection is cut
    garbage     accepted; the answer, with ``status``, is not the API's
    ==========  =========================================================================
    """

    action: str
    kind: FaultKind
    times: float = 1
    code: str = ""
    status: int = 400
    seconds: float = 30.0
    message: str = ""


class FakeEcs:
    """The endpoint on a free port of 127.0.0.1, in threads of this process; a context manager.

    Args:
        keys: who may call; anybody may do anything.
        port: 0 for a free one.
    """

    def __init__(
        self,
        cloud: Cloud | None = None,
        *,
        keys: tuple[Key, ...] = (Key("LTAI5tFakeKeyId00", "fake-secret-00"),),
        port: int = 0,
    ) -> None:
        self.cloud = cloud or Cloud()
        self.keys = {key.id: key for key in keys}
        self.key = keys[0]
        self.received: Counter[str] = Counter()
        """Calls by action, refused ones and cut ones too."""
        self.calls: list[dict[str, str]] = []
        """The parameters of each call, in order."""
        self._faults: list[Fault] = []
        self._nonces: set[str] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.fake = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def fail(self, action: str, kind: FaultKind, **more: Any) -> Fault:
        """Let something go wrong with that action."""
        fault = Fault(action, kind, **more)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        with self._lock:
            self._faults.clear()

    def calls_of(self, action: str) -> list[dict[str, str]]:
        return [call for call in self.calls if call["Action"] == action]

    def __enter__(self) -> FakeEcs:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.cloud.close()

    # One request

    def check(self, method: str, parameters: Mapping[str, str]) -> None:
        """Raises ApiError unless the request is signed, fresh and new."""
        for name in ("AccessKeyId", "Action", "Signature", "SignatureNonce", "Timestamp"):
            if name not in parameters:
                raise ApiError(400, f"Missing{name}")
        if parameters.get("Version") not in (ECS, RAM):
            raise ApiError(400, "InvalidVersion", "Specified parameter Version is not valid.")
        key = self.keys.get(parameters["AccessKeyId"])
        if key is None:
            raise ApiError(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        token = parameters.get("SecurityToken", "")
        if key.token and not token:
            raise ApiError(400, "MissingSecurityToken")
        if token != key.token:
            raise ApiError(400, "InvalidSecurityToken.MismatchWithAccessKey")
        text = string_to_sign(method, parameters)
        if not hmac.compare_digest(sign(text, key.secret), parameters["Signature"]):
            raise ApiError(
                400,
                "SignatureDoesNotMatch",
                f"Specified signature is not matched with our calculation. server string to sign is:{text}",
            )
        try:
            then = calendar.timegm(time.strptime(parameters["Timestamp"], "%Y-%m-%dT%H:%M:%SZ"))
        except ValueError:
            raise ApiError(400, "InvalidTimeStamp.Format") from None
        if abs(time.time() - then) > WINDOW:
            raise ApiError(400, "InvalidTimeStamp.Expired")
        with self._lock:
            if parameters["SignatureNonce"] in self._nonces:
                raise ApiError(400, "SignatureNonceUsed")
            self._nonces.add(parameters["SignatureNonce"])

    def take_fault(self, action: str) -> Fault | None:
        """The fault that this call meets, if any."""
        with self._lock:
            self.received[action] += 1
            for fault in self._faults:
                if fault.action == action and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


def string_to_sign(method: str, parameters: Mapping[str, str]) -> str:
    """What the signature covers: the sorted query, encoded twice."""
    query = "&".join(
        f"{_encode(name)}={_encode(value)}"
        for name, value in sorted(parameters.items())
        if name != "Signature"
    )
    return f"{method}&%2F&{_encode(query)}"


def sign(text: str, secret: str) -> str:
    digest = hmac.new(f"{secret}&".encode(), text.encode(), hashlib.sha1).digest()
    return base64.b64encode(digest).decode()


def _encode(text: str) -> str:
    return quote(text, safe="~")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    fake: FakeEcs

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client has gone; that is what the faults are for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        fake = self.server.fake
        request_id = str(uuid.uuid4()).upper()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        pairs = parse_qsl(urlsplit(self.path).query, keep_blank_values=True)
        parameters = dict(pairs + parse_qsl(body, keep_blank_values=True))
        fault = None
        try:
            fake.check(self.command, parameters)
            action = parameters["Action"]
            fake.calls.append(parameters)
            fault = fake.take_fault(action)
            if fault and fault.kind == "cut_before":
                self._cut()
                return
            if fault and fault.kind == "error":
                raise ApiError(fault.status, fault.code, fault.message)
            answer = fake.cloud.do(action, parameters, parameters["Version"])
        except ApiError as error:
            refusal = {
                "RequestId": request_id,
                "HostId": fake.endpoint,
                "Code": error.code,
                "Message": error.message,
                "Recommend": f"https://api.aliyun.com/troubleshoot?q={error.code}",
            }
            self._send(error.status, json.dumps(refusal).encode())
            return
        content = json.dumps({"RequestId": request_id, **answer}).encode()
        if fault is None:
            self._send(200, content)
        elif fault.kind == "cut_after":
            self._cut()
        elif fault.kind == "garbage":
            self._send(fault.status, b"<html><body>\xff\xfe gateway</body></html>")
        elif fault.kind == "slow":
            time.sleep(fault.seconds)
            self._send(200, content)
        else:
            self._send(200, content, pause=fault.seconds)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, content: bytes, pause: float = 0.0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json;charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not pause:
            self.wfile.write(content)
            return
        for position in range(len(content)):
            self.wfile.write(content[position : position + 1])
            time.sleep(pause)
