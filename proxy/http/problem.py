"""Errors for API clients: ``application/problem+json`` (RFC 9457), with OpenAI's ``error`` in it."""

from __future__ import annotations

import json
from typing import Any

from .request import Request, Scope, Send, send_answer

PROBLEM_TYPE = "application/problem+json; charset=utf-8"

_TITLES = {
    400: "Bad request",
    401: "Sign in first",
    403: "Not allowed",
    404: "Not found",
    409: "Not in this state",
    408: "Too slow",
    413: "Too large",
    414: "Address too long",
    421: "Unknown host name",
    423: "Blocked",
    429: "Too many requests",
    431: "Headers too large",
    501: "A host name is needed",
    502: "The node broke the connection",
    503: "Not ready",
    504: "It took too long",
}


_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
"""Types of errors of the OpenAI API; other statuses: see `api_error`."""


def api_error(status: int, code: str, detail: str) -> dict[str, Any]:
    """Return the error as the OpenAI API words it.

    Its SDKs show nothing of an answer but this object's ``message``
    (https://github.com/openai/openai-node, ``makeStatusError``).
    """
    other = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "message": detail,
        "type": _ERROR_TYPES.get(status, other),
        "param": None,
        "code": code,
    }


def problem_body(status: int, code: str, detail: str) -> bytes:
    """Return the JSON body; ``code`` is stable, ``detail`` is a sentence for people."""
    content = {
        "type": f"urn:qwenctl:problem:{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "code": code,
        "detail": detail,
        "error": api_error(status, code, detail),
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


async def send_problem(
    request: Request,
    send: Send,
    status: int,
    code: str,
    detail: str,
    *,
    retry_after: float | None = None,
) -> None:
    """Answer with a problem; ``retry_after`` in seconds."""
    problem = Problem(status, code, detail, retry_after)
    headers = {"Content-Type": PROBLEM_TYPE, "Cache-Control": "no-store", **problem.headers}
    await send_answer(request, send, status, headers, problem.body)


async def refuse_websocket(scope: Scope, send: Send, status: int, code: str, detail: str) -> None:
    """Refuse a handshake, with the problem as its body if the server can send it."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013, "reason": detail[:100]})
        return
    body = problem_body(status, code, detail)
    headers = [(b"content-type", PROBLEM_TYPE.encode())]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def refuse(
    request: Request, scope: Scope, send: Send, status: int, code: str, detail: str
) -> None:
    """Refuse a request or a WebSocket handshake."""
    if scope["type"] == "websocket":
        await refuse_websocket(scope, send, status, code, detail)
    else:
        await send_problem(request, send, status, code, detail)


class Problem(Exception):
    """An error to answer with: as HTML to a browser's navigation, else as problem+json."""

    def __init__(
        self, status: int, code: str, detail: str, retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.retry_after = status, code, detail, retry_after

    @property
    def body(self) -> bytes:
        return problem_body(self.status, self.code, self.detail)

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.status == 401:  # RFC 9110 §15.5.2
            headers["WWW-Authenticate"] = 'Bearer realm="qwenctl"'
        if self.retry_after:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        return headers
