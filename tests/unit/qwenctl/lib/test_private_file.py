"""Files with secrets in them, in a directory where others may write too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwenctl.lib.private_file import write_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_the_owners_alone_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    write_private(path, "a")
    path.chmod(0o666)
    write_private(path, "b\n")
    assert (path.read_text(), mode(path)) == ("b\n", 0o600)
    assert os.listdir(path.parent) == ["secret"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_that_somebody_laid_in_its_way_gets_no_secret(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secret"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("")
    elsewhere.chmod(0o666)
    for name in (f"secret.{os.getpid()}.new", "secret.new", "secret.tmp"):
        trap = tmp_path / name
        if kind == "link":
            trap.symlink_to(elsewhere)
        else:
            trap.write_text("")
            trap.chmod(0o666)
    write_private(path, "the secret")
    assert (path.read_text(), mode(path), path.is_symlink()) == ("the secret", 0o600, False)
    others = [one for one in tmp_path.iterdir() if one != path]
    assert [one.read_text() for one in others] == [""] * 4


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.mkdir()
    with pytest.raises(OSError):
        write_private(path, "the secret")
    with pytest.raises(UnicodeEncodeError):
        write_private(tmp_path / "other", "\ud800")
    assert os.listdir(tmp_path) == ["secret"]
