"""Files that are pipes, devices, endless, or on a disk that does not answer."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from qwenctl.lib.bounded_file import BoundedFile, Unanswered


def read(path: Path, most: int = 100) -> bytes:
    return BoundedFile(path, bytes, most=most, seconds=5.0).read()


def test_a_pipe_a_directory_a_device_and_a_large_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 10 * 2**30)
    (tmp_path / "link").symlink_to("pipe")
    began = time.monotonic()
    for name, words in (
        ("pipe", "it is a pipe"),
        ("link", "it is a pipe"),
        (".", "it is a directory"),
        ("/dev/zero", "it is a device"),
        ("large", "more than 100 bytes"),
        ("none", "No such file"),
    ):
        with pytest.raises(OSError, match=words):
            read(tmp_path / name)
    assert time.monotonic() - began < 4.0


def test_it_is_parsed_again_only_once_it_has_changed(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []

    def parse(content: bytes) -> int:
        seen.append(content)
        return int(content)

    file = BoundedFile(path, parse, most=100, seconds=5.0)
    path.write_bytes(b"1")
    assert [file.read() for _ in range(3)] == [1, 1, 1]
    path.write_bytes(b"x")
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal"):
            file.read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.read()
    path.write_bytes(b"22")
    assert file.read() == 22
    assert seen == [b"1", b"x", b"22"]


def test_one_thread_waits_for_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    answers, asked = threading.Event(), []

    class Hung(type(tmp_path)):  # type: ignore[misc]
        def stat(self, **_: bool) -> os.stat_result:
            asked.append(1)
            answers.wait(30)
            return os.stat(self)

    (tmp_path / "file").write_bytes(b"1")
    file = BoundedFile(Hung(tmp_path / "file"), bytes, most=100, seconds=0.2)
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unanswered, match=r"no answer within 0\.2 s"):
            file.read()
    assert time.monotonic() - began < 2.0  # only the first of them waits
    assert len(asked) == 1
    answers.set()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert file.read() == b"1"
            break
        except Unanswered:
            assert time.monotonic() < deadline
            time.sleep(0.01)
