"""Who asks: `Identity`, and the API key in a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwenctl.core.leases import request

__all__ = [
    "KEY_PREFIX",
    "Identity",
]

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
