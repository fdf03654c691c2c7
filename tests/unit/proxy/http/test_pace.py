"""How far a connection reads, and when it stands still."""

from __future__ import annotations

from typing import Any

from proxy.http.pace import AHEAD, BODY_SECONDS, READ, READER_SECONDS, Pace, Stall


class Transport:
    left = 0

    def get_write_buffer_size(self) -> int:
        return self.left

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def made() -> tuple[Any, Pace]:
    transport: Any = Transport()
    return transport, Pace(transport)


def test_only_what_waits_for_a_client_can_stall() -> None:
    transport: Any = Transport()
    stall = Stall()
    for now in range(0, 10_000, 100):
        assert not stall.lasts(transport, now), "nothing to send: it generates"
    transport.left = 1000
    assert not stall.lasts(transport, 20_000)
    assert not stall.lasts(transport, 20_000 + READER_SECONDS)
    transport.left = 999
    assert not stall.lasts(transport, 20_001 + READER_SECONDS), "it moves"
    assert stall.lasts(transport, 20_002 + 2 * READER_SECONDS)


def test_a_body_may_be_slow_and_may_wait_for_us() -> None:
    _, pace = made()
    began = pace.moved_at
    assert not pace.body_stalls(began + BODY_SECONDS)
    assert pace.body_stalls(began + BODY_SECONDS + 1)
    pace.pause_reading()
    pace.moved_at = began - 10 * BODY_SECONDS  # it was held
    pace.resume_reading()
    assert not pace.body_stalls(began + BODY_SECONDS)


def test_reads_grow_only_while_the_application_asks() -> None:
    _, pace = made()
    sizes = []
    for _ in range(8):
        sizes.append(pace.read_size)
        pace.arrived()
    assert sizes == [AHEAD] * 8, "nobody asks"
    sizes = []
    for _ in range(6):
        pace.resume_reading()
        sizes.append(pace.read_size)
        pace.arrived()
        assert pace.read_size == AHEAD
    assert sizes == [AHEAD, 2 * AHEAD, 4 * AHEAD, 8 * AHEAD, READ, READ]
    pace.ended()
    pace.resume_reading()
    assert pace.read_size == AHEAD
