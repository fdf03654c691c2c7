"""An HTTP connection that checks a deadline just before it sends.

A look-up of a name has no time limit, and it happens between the making of a request and its
sending. So the time is checked where nothing but the sending is left: on the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["with_deadline"]


def with_deadline(connection: type[Any], check: Callable[[], object]) -> type[Any]:
    """Make a subclass of a connection that calls ``check`` before it sends anything.

    Args:
        connection: a subclass of `http.client.HTTPConnection`, as all urllib3s have.
        check: raises to stop the request; runs in the request's thread, once it is connected.
    """

    class Deadline(connection):  # type: ignore[misc]
        def send(self, data: object) -> None:
            if self.sock is None and self.auto_open:
                self.connect()
            check()
            super().send(data)

    return Deadline
