from __future__ import annotations

import os
from pathlib import Path

from gpu_node.deadman import CommandStop, DeadMan


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


def test_a_command_that_fails_is_logged(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    CommandStop(["sh", "-c", "echo no permission >&2; exit 4"]).power_off()
    assert "exit code 4: no permission" in caplog.text
    CommandStop(["/nonexistent"]).power_off()
    assert "No such file" in caplog.text
    CommandStop(["touch", os.fspath(tmp_path / "done")]).power_off()
    assert (tmp_path / "done").exists()
