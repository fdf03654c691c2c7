"""Keys of a config file are set and removed, and nothing else changes."""

from __future__ import annotations

import os
import resource
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenctl.config.edit import edit, with_keys
from qwenctl.errors import ConfigError

PLACE = ("gpu", "main", "aws")
TEXT = """\
# mine
[gpu.main]
provider = "aws"   # why not

[gpu.other.aws]
instance_id = "i-0"

[gpu.main.aws]  # the cloud
region = "us-east-1"
# instance_id = "i-1"
instance_id = "i-2"  # by hand

[gpu.main.aws.template]
instance_id_of_old = 3
"""


def test_a_value_is_replaced_and_its_comment_kept() -> None:
    after = with_keys(TEXT, PLACE, {"instance_id": "i-3"})
    assert after == TEXT.replace('"i-2"', '"i-3"')


def test_a_key_is_removed() -> None:
    after = with_keys(TEXT, PLACE, {"instance_id": None})
    assert after == TEXT.replace('instance_id = "i-2"  # by hand\n', "")
    assert with_keys(after, PLACE, {"instance_id": None}) == after


def test_a_new_key_goes_below_the_header() -> None:
    place = (*PLACE, "template")
    after = with_keys(TEXT, place, {"generation": 2})
    assert after == TEXT.replace("template]\n", "template]\ngeneration = 2\n")
    assert with_keys(after, place, {"generation": 3}) == after.replace("= 2", "= 3")


def test_line_ends_stay() -> None:
    text = TEXT.replace("\n", "\r\n")
    assert with_keys(text, PLACE, {"instance_id": "i-3"}) == text.replace('"i-2"', '"i-3"')
    added = with_keys(text, PLACE, {"address": "auto"})
    assert added.count("\r\n") == added.count("\n") == text.count("\n") + 1
    assert with_keys("[a.b]", ("a", "b"), {"c": True}) == "[a.b]\nc = true\n"


@pytest.mark.parametrize(
    "text",
    [
        '[gpu.main]\naws = { instance_id = "i-2" }\n',
        '[gpu.main]\naws.instance_id = "i-2"\n',
        '[gpu."main".aws]\ninstance_id = "i-2"\n',
        '[gpu.main.aws]\n"instance_id" = "i-2"\n',
        '[gpu.main.aws]\ninstance_id = """\ni-2"""\n',
    ],
)
def test_what_is_written_in_another_way_is_left_to_people(text: str) -> None:
    with pytest.raises(ConfigError, match="set instance_id by hand"):
        with_keys(text, PLACE, {"instance_id": "i-3"})


@pytest.fixture
def file() -> Iterator[Path]:
    """A config file that any user can reach."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        path = Path(directory, "qwenctl.toml")
        path.write_text("# mine\n[gpu.main]\n")
        path.chmod(0o644)
        yield path


def test_an_edit_waits_for_the_one_before(file: Path) -> None:
    def second() -> None:
        edit(file, lambda text: text + "[gpu.second]\n", {})

    thread = threading.Thread(target=second)

    def first(text: str) -> str:
        thread.start()
        thread.join(2)  # time enough to get in between, if it could
        return text + "[gpu.first]\n"

    edit(file, first, {})
    thread.join(30)
    assert file.read_text() == "# mine\n[gpu.main]\n[gpu.first]\n[gpu.second]\n"
    assert os.listdir(file.parent) == [file.name]


def test_what_is_not_valid_is_not_written(file: Path) -> None:
    before = file.read_text()
    with pytest.raises(ConfigError, match=r"qwenctl\.toml"):
        edit(file, lambda text: text + "nonsense = 3\n", {})
    assert (file.read_text(), os.listdir(file.parent)) == (before, [file.name])


def test_a_full_disk_leaves_the_file_as_it_was(file: Path) -> None:
    file.write_text(file.read_text() + "# " + 4000 * "x" + "\n")
    before = file.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(ConfigError, match="cannot write"):
            edit(file, lambda text: text + "[gpu.second]\n", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (file.read_text(), os.listdir(file.parent)) == (before, [file.name])


def test_a_new_file_has_the_usual_permissions(file: Path) -> None:
    file.unlink()
    (other := file.with_name("other")).touch()
    edit(file, lambda text: text + "[gpu.main]\n", {})
    assert (file.stat().st_mode, file.read_text()) == (other.stat().st_mode, "[gpu.main]\n")


as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="this machine cannot give files away: not root"
)
NOBODY = 65534


@as_root
def test_the_file_keeps_its_owner(file: Path) -> None:
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o640)
    edit(file, lambda text: text + "[gpu.second]\n", {})
    after = file.stat()
    assert (after.st_uid, after.st_gid, after.st_mode & 0o777) == (NOBODY, NOBODY, 0o640)
    assert "second" in file.read_text()


@as_root
def test_who_cannot_keep_the_owner_does_not_write(file: Path) -> None:
    os.chown(file, NOBODY, 0)
    before = file.read_text()
    os.seteuid(NOBODY - 1)
    try:
        with pytest.raises(ConfigError, match="it would change its owner or group"):
            edit(file, lambda text: text + "[gpu.second]\n", {})
    finally:
        os.seteuid(0)
    assert (file.read_text(), file.stat().st_uid) == (before, NOBODY)
    assert os.listdir(file.parent) == [file.name]
