"""Files with secrets in them, in a directory where others may write too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import (
    open_private,
    private_directory,
    read_private,
    write_note,
    write_private,
)
from tests.support.other_user import needs_root


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


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_nothing_but_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if kind == "pipe":
        os.mkfifo(path)  # open(2) would wait for a writer
    elif kind == "link":
        path.symlink_to(victim)
    else:
        path.mkdir()
    for use in (read_private, lambda p: open_private(p, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        with pytest.raises(OSError) as refused:
            use(path)
        assert not isinstance(refused.value, PermissionError)
    if kind != "directory":
        write_note(path, "note")
        assert (path.read_text(), path.is_symlink()) == ("note", False)
    assert victim.read_text() == "precious"


def test_a_file_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(OSError, match="too large"):
        read_private(tmp_path / "file")


@needs_root
def test_a_directory_of_somebody_else_is_refused_unless_root_may_use_it(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to the user nobody"):
        private_directory(theirs)
    private_directory(theirs, trusting=True)
    (tmp_path / "link").symlink_to(theirs)
    with pytest.raises(ConfigError, match="belongs to the user nobody"):
        private_directory(tmp_path / "link")
