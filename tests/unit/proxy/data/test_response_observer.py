"""Observers of an answer see each piece of it and its end, after the client has taken it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from proxy.data.response_observer import ObservedSend
from proxy.http.request import Message

START = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]}


class Seen:
    """Records what it is shown."""

    def __init__(self, sent: Sequence[Message]) -> None:
        self._sent = sent
        self.seen: list[object] = []

    def started(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.seen.append((status, list(headers), len(self._sent)))

    def passed(self, piece: bytes) -> None:
        self.seen.append((piece, len(self._sent)))

    def ended(self, *, complete: bool) -> None:
        self.seen.append(complete)


async def answer(sent: list[Message], observers: Sequence[Seen], *, breaks: bool = False) -> None:
    async def send(message: Message) -> None:
        sent.append(message)

    with ObservedSend(send, observers) as observed:
        await observed(START)
        await observed({"type": "http.response.body", "body": b"one", "more_body": True})
        if breaks:
            raise ConnectionError
        await observed({"type": "http.response.body", "body": b"two", "more_body": False})


def test_two_observers_see_all_that_passes() -> None:
    sent: list[Message] = []
    observers = [Seen(sent), Seen(sent)]
    asyncio.run(answer(sent, observers))
    assert [message.get("body") for message in sent] == [None, b"one", b"two"]
    for observer in observers:
        # Each was shown a piece once the client had it.
        assert observer.seen == [(200, [(b"x", b"y")], 1), (b"one", 2), (b"two", 3), True]


def test_an_answer_that_breaks_off_is_not_complete() -> None:
    sent: list[Message] = []
    observer = Seen(sent)
    with pytest.raises(ConnectionError):
        asyncio.run(answer(sent, [observer], breaks=True))
    assert observer.seen[1:] == [(b"one", 2), False]
