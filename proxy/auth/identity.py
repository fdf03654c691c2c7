"""Who asks: `Identity`, and how a request names it (cookie, API key)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qwenctl.core.leases import request

from ..http.request import Request

__all__ = [
    "COOKIE",
    "KEY_PREFIX",
    "VISIT_COOKIE",
    "VISIT_SLOTS",
    "Identity",
    "read_cookie",
    "visit_slot",
]

COOKIE = "qwenctl_session"

VISIT_COOKIE = "qwenctl_visit"
"""Tells apart the waiting pages of visitors who need not sign in and share an address: `visit_slot`.
Nobody has to send it."""

VISIT_SLOTS = "0123456789abcdef"
"""What that cookie may say. So few, because each is a lease that anybody may ask for."""

KEY_PREFIX = "qk_"


@dataclass(frozen=True)
class Identity:
    """Somebody who may use the GPU."""

    kind: Literal["anonymous", "browser", "key"]
    name: str

    @property
    def lease(self) -> str:
        """The name of this client's demand lease."""
        return request(self.name if self.kind == "anonymous" else f"{self.kind}:{self.name}")


def api_key(headers: dict[str, str]) -> str:
    """The qwenctl API key a client sent, or empty."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip().startswith(KEY_PREFIX):
        return token.strip()
    key = headers.get("x-api-key", "")
    return key if key.startswith(KEY_PREFIX) else ""


_VISIT_PATTERN = re.compile(rf"(?:^|;)\s*{VISIT_COOKIE}=([{VISIT_SLOTS}])\s*(?:;|$)")
_COOKIE_PATTERN = re.compile(rf"(?:^|;)\s*{COOKIE}=([^;\s]*)")


def read_cookie(header: str) -> str:
    found = _COOKIE_PATTERN.search(header)
    return found.group(1) if found else ""


def visit_slot(request: Request) -> str:
    """Which of the visitors of its address this is, one of `VISIT_SLOTS`; empty: not known."""
    found = _VISIT_PATTERN.search(request.headers.get("cookie", ""))
    return found.group(1) if found else ""
