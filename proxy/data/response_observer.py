"""Observe an answer of the node while it passes, without holding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..http.request import Message, Send
from .exchange import Exchange


class ResponseObserver(Protocol):
    """Sees each piece of one answer after the client's connection has taken it.

    Each call must be quick, must not raise, and must keep no piece.
    """

    def started(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The status and the headers have been sent."""

    def passed(self, piece: bytes) -> None:
        """A piece of the body has been sent."""

    def ended(self, *, complete: bool) -> None:
        """The last byte has been sent, or the answer broke off before it."""


ObserverFactory = Callable[[Exchange], "ResponseObserver | None"]
"""Makes the observer of one exchange's answer, or None if it need not be observed."""


class ObservedSend:
    """A ``send`` that shows what it sends to observers; as a context manager it tells them the end."""

    def __init__(self, send: Send, observers: Sequence[ResponseObserver]) -> None:
        self._send = send
        self._observers = observers
        self._complete = False

    def __enter__(self) -> ObservedSend:
        return self

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            for observer in self._observers:
                observer.started(message["status"], message["headers"])
            return
        for observer in self._observers:
            observer.passed(message.get("body", b""))
        self._complete = not message.get("more_body", False)

    def __exit__(self, *_: object) -> None:
        for observer in self._observers:
            observer.ended(complete=self._complete)


class FirstByte:
    """Notes the first answer after each start in the history, once in this process."""

    def __init__(self, note: Callable[[str, int], None]) -> None:
        """``note(gpu, start_seq)`` is called when an answer's first byte has been sent."""
        self._note = note
        self._noted: dict[str, int] = {}

    def __call__(self, exchange: Exchange) -> ResponseObserver | None:
        """Return an observer if no answer has been noted since the GPU's start."""
        seq = exchange.view.snapshot.start_seq
        return None if self._noted.get(exchange.name) == seq else _Noting(self, exchange.name, seq)

    def note(self, gpu: str, seq: int) -> None:
        if self._noted.get(gpu) != seq:
            self._noted[gpu] = seq
            self._note(gpu, seq)


class _Noting:
    def __init__(self, first_byte: FirstByte, gpu: str, seq: int) -> None:
        self._first_byte, self._gpu, self._seq = first_byte, gpu, seq

    def started(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:  # noqa: ARG002
        self._first_byte.note(self._gpu, self._seq)

    def passed(self, piece: bytes) -> None: ...

    def ended(self, *, complete: bool) -> None: ...
