"""The server side of WebSockets: uvicorn's, with bounded messages."""

from __future__ import annotations

import time
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11
from websockets.frames import Frame

from .capacity import Capacity
from .pace import Stall, drop

MAX_MESSAGE = 16 << 20
"""The longest message in either direction, in bytes; a longer one closes the connection with 1009.
It is uvicorn's default; a message is held as a whole, because an ASGI application gets it so."""

MAX_IN_ALL = 256 << 20
"""How much all connections together may hold of their messages, in bytes, until who sends more is
told to come again (1013)."""

SMALL = 64 * 1024
"""A connection that holds less is left alone, whatever all hold together."""

LONG = 0.005
"""If what one read has brought takes longer, in seconds, as tiny frames do, the next read waits as
long again: one client has at most half of the processor."""

TRY_AGAIN_LATER = 1013
ABNORMAL = 1006
INVALID_DATA = 1007

http11.MAX_LINE_LENGTH = http11.MAX_NUM_HEADERS = 1 << 17
"""Higher than `server.MAX_HEAD`, which bounds the head before websockets reads it anew; its own
bounds would refuse a cookie of over 8 KiB."""


class Held:
    """Counts the bytes that all connections hold."""

    def __init__(self) -> None:
        self.bytes = 0


class WebSocket(WebSocketsSansIOProtocol):
    """One connection. It reads while its client takes what is written, and answers to pings beside
    that only up to a bound: a client that is slow to take an answer may still say "stop"."""

    capacity: Capacity | None = None
    in_all = Held()
    _held = 0
    _passing = 0
    """The size of the message that the application works on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._parts = bytearray()
        """A fragmented message so far; uvicorn's list would take far more for tiny fragments."""
        self._stall = Stall()
        self._full = 0
        """How much there was to write when the application was told to wait."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self.capacity is not None:
            self.capacity.remove(self)
        super().connection_lost(exc)
        self._parts.clear()
        self._passing = 0
        self._count(0)

    def drop(self) -> None:
        drop(self.transport)

    def check(self, now: float) -> None:
        """Close the connection of a client that takes nothing."""
        if self._stall.lasts(self.transport, now):
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._full = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_on()

    def _read_on(self) -> None:
        if not self.read_paused and not self._piles_up() and not self.transport.is_closing():
            self.transport.resume_reading()

    def _piles_up(self) -> bool:
        """Whether answers to pings, which do not wait as the application does, are not taken."""
        left = 0 if self.writable.is_set() else self.transport.get_write_buffer_size()
        return left > self._full + SMALL

    def data_received(self, data: bytes) -> None:
        began = time.monotonic()
        super().data_received(data)
        if (took := time.monotonic() - began) > LONG:
            self.transport.pause_reading()
            self.loop.call_later(took, self._read_on)
        elif self._piles_up():
            self.transport.pause_reading()
        held = len(self._parts) + len(self.conn.reader.buffer) + self._passing
        self._count(held)
        if held > SMALL and self.in_all.bytes > MAX_IN_ALL and not self.close_sent:
            self.conn.fail(TRY_AGAIN_LATER, "too many large messages at once")
            self.handle_parser_exception()

    def _count(self, held: int) -> None:
        self.in_all.bytes += held - self._held
        self._held = held

    def handle_text(self, event: Frame) -> None:
        self._begin(event)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        self._begin(event)
        super().handle_bytes(event)

    def _begin(self, event: Frame) -> None:
        self._parts.clear()
        if not event.fin:
            self._parts += event.data

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn takes it for an error of ours
                self.frames = []
                self.conn.fail(INVALID_DATA, "this is no UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
            return
        # Before the handshake is answered there is no close frame to send.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": ABNORMAL})
        self.handshake_complete = self.disconnected = True
        self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        self._parts += event.data
        if event.fin:
            self.frames = [bytes(self._parts)]
            self._parts.clear()
            self.send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # uvicorn takes a refusal for an error otherwise

    async def receive(self) -> Any:
        self._passing = 0
        message = await super().receive()
        self._passing = len(message.get("text") or message.get("bytes") or b"")  # type: ignore[arg-type]
        return message
