from __future__ import annotations

import os
from pathlib import Path

from gpu_node.selfstop.deadman import DeadMan, power_off, read_contact


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_contact_starts_the_count_anew(tmp_path: Path) -> None:
    clock = Clock()
    switch = DeadMan(tmp_path / "deadman.json", "boot-one", 60.0, clock)
    clock.now += 59
    assert switch.remaining == 1
    switch.contact()
    clock.now += 59
    assert switch.remaining == 1
    clock.now += 2
    assert switch.remaining == -1


def test_a_restarted_agent_counts_on_and_another_boot_does_not(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "deadman.json"
    DeadMan(file, "boot-one", 60.0, clock)
    clock.now += 50
    assert DeadMan(file, "boot-one", 60.0, clock).remaining == 10
    assert DeadMan(file, "boot-two", 60.0, clock).remaining == 60


def test_a_record_from_the_future_counts_from_now(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "deadman.json"
    DeadMan(file, "boot-one", 60.0, clock)
    clock.now = 5.0  # the clock began anew under the same boot id
    assert DeadMan(file, "boot-one", 60.0, clock).remaining == 60


def test_the_record_is_never_much_older_than_the_contact(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "deadman.json"
    switch = DeadMan(file, "boot-one", 600.0, clock)
    for _ in range(100):
        clock.now += 1
        switch.contact()
    assert 595 <= DeadMan(file, "boot-one", 600.0, clock).remaining <= 600


def test_a_broken_or_unwritable_record_is_no_end(tmp_path: Path) -> None:
    file = tmp_path / "deadman.json"
    file.write_text("{")
    assert DeadMan(file, "boot-one", 60.0, Clock()).remaining == 60
    assert DeadMan(tmp_path / "missing" / "x.json", "boot-one", 60.0, Clock()).remaining == 60


def test_a_record_that_cannot_be_a_time_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "deadman.json"
    for last in ("-1", "NaN", "Infinity", "1001", '"x"', "null", "[]"):
        file.write_text(f'{{"boot_id": "boot-one", "last": {last}}}')
        assert read_contact(file, "boot-one", 1000.0) is None, last
    for text in ("", "[]", "{}", '"x"', "\x00", '{"last": 5}'):
        file.write_text(text)
        assert read_contact(file, "boot-one", 1000.0) is None, text
    file.write_bytes(b"\xff\xfe")
    assert read_contact(file, "boot-one", 1000.0) is None
    file.write_text('{"boot_id": "boot-one", "last": 999.5}')
    assert read_contact(file, "boot-one", 1000.0) == 999.5


def test_the_record_goes_on_where_no_new_file_can_be_made(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "deadman.json"
    switch = DeadMan(file, "boot-one", 60.0, clock)
    file.with_suffix(".new").mkdir()  # as on a full disk, nothing can be written there
    clock.now += 100_000
    switch.contact()
    assert read_contact(file, "boot-one", clock.now) == clock.now


def test_a_command_that_fails_is_logged(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    power_off(["sh", "-c", "echo no permission >&2; exit 4"], pauses=())
    assert "exit code 4: no permission" in caplog.text
    power_off(["/nonexistent"], pauses=())
    assert "No such file" in caplog.text
    power_off(["touch", os.fspath(tmp_path / "done")])
    assert (tmp_path / "done").exists()


def test_a_command_is_tried_again_until_it_works(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    script = f'echo try >> "{tries}"; test "$(wc -l < "{tries}")" -ge 3'
    power_off(["sh", "-c", script], pauses=(0.0, 0.0, 0.0, 0.0))
    assert tries.read_text().splitlines() == ["try"] * 3


def test_a_command_that_hangs_is_ended_and_tried_again(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    tries = tmp_path / "tries"
    power_off(["sh", "-c", f'echo try >> "{tries}"; exec sleep 150'], timeout=0.5, pauses=(0.0,))
    assert tries.read_text().splitlines() == ["try"] * 2
    assert "timed out" in caplog.text


def test_a_proxy_that_does_not_need_the_instance_does_not_start_the_count_anew(
    tmp_path: Path,
) -> None:
    clock = Clock()
    switch = DeadMan(tmp_path / "deadman.json", "boot-one", 60.0, clock)
    switch.contact()
    for second in range(1, 62):
        clock.now += 1
        switch.contact(unneeded_for=float(second))
    assert switch.remaining == -1
    assert "nobody has needed this instance for 60 s" in switch.silence
    # It is needed again.
    switch.contact()
    assert switch.remaining == 60
    assert switch.silence == "no proxy heard for 60 s"


def test_a_proxy_whose_clock_jumps_does_not_stop_the_instance(tmp_path: Path) -> None:
    clock = Clock()
    switch = DeadMan(tmp_path / "deadman.json", "boot-one", 60.0, clock)
    clock.now += 30
    switch.contact()
    clock.now += 1
    switch.contact(unneeded_for=3600.0)
    assert switch.remaining == 59
