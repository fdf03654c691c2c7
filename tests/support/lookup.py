"""A name server that lets one wait: `socket.getaddrinfo` for one name, as long as a test wants."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

__all__ = ["HOST", "Lookup"]

HOST = "slow.test"
"""The name that it knows: this machine."""


class Lookup:
    """Holds lookups of `HOST` until ``go`` is set; ``began`` is set when one has begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        real = socket.getaddrinfo

        def look(host: Any, *args: Any, **more: Any) -> Any:
            if host != HOST:
                return real(host, *args, **more)
            self.began.set()
            self.go.wait(60)
            return real("127.0.0.1", *args, **more)

        monkeypatch.setattr(socket, "getaddrinfo", look)
