"""For how long a node has answered nothing."""

from __future__ import annotations

import pytest

from proxy.data import link
from proxy.data.link import Link, Silence
from tests.support.virtual_time import VirtualClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    clock = VirtualClock()
    monkeypatch.setattr(link.time, "monotonic", clock)
    return clock


def test_clients_that_come_and_go_unanswered_do_not_shorten_it(clock: VirtualClock) -> None:
    silence = Silence()
    clock.advance(1000)
    for _ in range(5):
        Link(silence).asked()
        clock.advance(60)
    assert silence.seconds == 300


def test_a_byte_ends_it_whoever_asked(clock: VirtualClock) -> None:
    silence = Silence()
    waiting, other = Link(silence), Link(silence)
    waiting.asked()
    clock.advance(500)
    other.heard()
    assert silence.seconds == 0
    assert (waiting.idle, waiting.started) == (500, False)
    assert (other.idle, other.started) == (0, True)


def test_it_goes_on_in_the_middle_of_an_answer(clock: VirtualClock) -> None:
    silence = Silence()
    stream = Link(silence)
    stream.asked()
    stream.heard()
    clock.advance(200)
    assert silence.seconds == 200


def test_a_request_still_being_sent_asks_nothing_yet(clock: VirtualClock) -> None:
    silence = Silence()
    clock.advance(500)
    upload = Link(silence)
    clock.advance(500)
    upload.sent()
    assert upload.idle == 0
    upload.asked()
    assert silence.seconds == 0
