"""Requests that are not sent after their time, whatever their connection took.

A look-up of a name has no time limit, and it happens between the making of a request and its
sending. So the time is checked where nothing but the sending is left: on the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["punctual"]


def punctual(connection: type[Any], check: Callable[[], object]) -> type[Any]:
    """That class of connections, which calls ``check`` before it sends anything.

    Args:
        connection: a subclass of `http.client.HTTPConnection`, as all urllib3s have.
        check: raises to stop the request; runs in the request's thread, once it is connected.
    """

    class Punctual(connection):  # type: ignore[misc]
        def send(self, data: object) -> None:
            if self.sock is None and self.auto_open:
                self.connect()
            check()
            super().send(data)

    return Punctual
