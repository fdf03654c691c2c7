"""The warm-up with real files: what it reads, in which order, and when it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from gpu_node.services.page_cache import PIECE, WarmUp, available_memory, weight_files
from tests.support.cold_files import MB, make_cold, resident, write
from tests.support.paths import ROOT

PLENTY = 1 << 50


def names(root: Path, below: Path | None = None) -> list[str]:
    return [str(file.path.relative_to(below or root)) for file in weight_files(root)]


def run(warm_up: WarmUp) -> WarmUp:
    warm_up.start()
    assert warm_up.join(60)
    return warm_up


# ---------------------------------------------------------------- which files


def test_shards_come_in_the_order_of_the_index_and_the_rest_by_size(tmp_path: Path) -> None:
    for name, size in {
        "model-00002-of-00002.safetensors": 3000,
        "model-00001-of-00002.safetensors": 10,
        "consolidated.safetensors": 9000,
        "pytorch_model.bin": 8000,
        "tokenizer.json": 700,
        "config.json": 20,
    }.items():
        write(tmp_path / name, size)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps(
            {
                "weight_map": {
                    "b": "model-00002-of-00002.safetensors",
                    "a": "model-00001-of-00002.safetensors",
                    "c": "model-00003-of-00002.safetensors",  # not there
                }
            }
        )
    )
    found = names(tmp_path)
    assert found[:2] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert found[2] == "tokenizer.json"
    assert sorted(found[3:]) == ["config.json", "model.safetensors.index.json"]


def test_without_an_index_the_largest_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "a" / "small.safetensors", 10)
    write(tmp_path / "b" / "large.safetensors", 2 * MB)
    write(tmp_path / "b" / "large.bin", 2 * MB)
    write(tmp_path / "c" / "only.bin", MB)  # another model: its only format
    assert names(tmp_path) == ["b/large.safetensors", "c/only.bin", "a/small.safetensors"]


@pytest.mark.parametrize(
    "index", ["not json", "[]", '{"weight_map": 3}', '{"weight_map": {"a": []}}']
)
def test_a_broken_index_is_as_none(tmp_path: Path, index: str) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors" in names(tmp_path)


def test_a_model_in_the_hugging_face_cache_is_its_snapshot(tmp_path: Path) -> None:
    model = tmp_path / "models--Qwen--Qwen3-VL"
    for blob in ("new", "old", "shared"):
        write(model / "blobs" / blob, 100)
    write(model / "blobs" / "half.incomplete", 5000)
    for revision, blobs in {"aaa": ("old", "shared"), "bbb": ("new", "shared")}.items():
        snapshot = model / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for blob in blobs:
            (snapshot / f"{blob}.safetensors").symlink_to(f"../../blobs/{blob}")
    assert names(model) == [
        "snapshots/aaa/old.safetensors",
        "snapshots/aaa/shared.safetensors",  # once, though both snapshots have it
        "snapshots/bbb/new.safetensors",
    ]
    write(model / "refs" / "main").write_text("bbb")
    inside = ["snapshots/bbb/new.safetensors", "snapshots/bbb/shared.safetensors"]
    assert names(model) == inside
    assert names(tmp_path, model) == inside  # the whole cache
    (model / "refs" / "main").write_text("../../elsewhere")
    assert len(names(model)) == 3


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a.safetensors")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "b.safetensors").symlink_to("real/a.safetensors")
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    assert len(names(tmp_path)) == 1


def test_hidden_empty_and_special_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "x.safetensors")
    (tmp_path / "empty.safetensors").touch()
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert names(tmp_path) == []


def test_a_file_or_nothing_at_all(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "one.gguf")
    file = write(tmp_path / "one.gguf")
    write(tmp_path / "other.gguf")
    assert [found.path for found in weight_files(file)] == [file]
    assert weight_files(tmp_path / "nowhere") == []


# ---------------------------------------------------------------- reading


def test_cold_files_are_in_memory_afterwards(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.safetensors", 40 * MB) for n in range(2)]
    make_cold(*files)
    told: list[tuple[int, int]] = []
    warm_up = run(WarmUp(tmp_path, lambda done, total: told.append((done, total)), reserve=0))
    # Not all of it: some kernels let go of a few pages at any time.
    assert all(resident(file) > 36 * MB for file in files)
    assert warm_up.done == warm_up.total == 80 * MB
    assert warm_up.read > 0
    assert warm_up.rate > 0
    assert not warm_up.out_of_memory
    assert told[-1] == (80 * MB, 80 * MB)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_is_in_memory_already_is_not_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 40 * MB)
    file.read_bytes()
    if resident(file) < 40 * MB:
        pytest.skip("this machine has no room for 40 MB of page cache")
    warm_up = run(WarmUp(tmp_path, reserve=0))
    assert warm_up.done == 40 * MB
    assert warm_up.read <= PIECE  # some kernels let go of a few pages at any time


def test_a_kernel_that_does_not_tell_makes_it_read_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.safetensors", 3 * MB)
    monkeypatch.setattr("gpu_node.services.page_cache._mincore", None)
    assert run(WarmUp(tmp_path, reserve=0)).read == 3 * MB


def test_nothing_to_read(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    warm_up = run(WarmUp(tmp_path / "nowhere", lambda *seen: told.append(seen)))
    assert told == [(0, 0)]
    assert warm_up.rate == 0


def test_it_never_reads_more_than_memory_allows(tmp_path: Path) -> None:
    for n in range(3):
        write(tmp_path / f"{n}.safetensors", 40 * MB)
    warm_up = run(WarmUp(tmp_path, available=lambda: 100 * MB, reserve=40 * MB))
    assert warm_up.out_of_memory
    assert 60 * MB - PIECE < warm_up.done <= 60 * MB
    assert warm_up.total == 120 * MB


def test_memory_that_runs_out_meanwhile_ends_it(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", 96 * MB)
    looks = iter([PLENTY, PLENTY])
    warm_up = run(WarmUp(tmp_path, available=lambda: next(looks, 0), reserve=0, threads=1))
    assert warm_up.out_of_memory
    assert warm_up.done == 2 * PIECE


def test_without_room_nothing_is_opened(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", 2 * MB)
    make_cold(file)
    assert run(WarmUp(tmp_path, available=lambda: 10 * MB, reserve=10 * MB)).done == 0
    assert resident(file) == 0


def test_it_stops_in_the_middle(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", 96 * MB)
    asked, go_on = threading.Event(), threading.Event()
    looks = iter(range(99))

    def available() -> int:
        if next(looks) == 2:
            asked.set()
            assert go_on.wait(30)
        return PLENTY

    warm_up = WarmUp(tmp_path, available=available, reserve=0, threads=1)
    warm_up.start()
    assert asked.wait(30)
    warm_up.stop()
    go_on.set()
    assert warm_up.join(30)
    assert 0 < warm_up.done < 96 * MB
    assert not warm_up.out_of_memory


def test_stopped_before_it_began(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", 2 * MB)
    warm_up = WarmUp(tmp_path)
    warm_up.stop()
    assert run(warm_up).done == 0


def test_files_that_vanish_shrink_or_are_replaced_do_not_end_it(tmp_path: Path) -> None:
    for name in "abcd":
        write(tmp_path / f"{name}.safetensors", 20 * MB)
    changed = threading.Event()

    def available() -> int:
        # The files have been listed, none has been opened.
        if not changed.is_set():
            changed.set()
            (tmp_path / "a.safetensors").unlink()
            os.truncate(tmp_path / "b.safetensors", 1 * MB)
            (tmp_path / "c.safetensors").unlink()
            (tmp_path / "c.safetensors").mkdir()
        return PLENTY

    told: list[tuple[int, int]] = []
    run(WarmUp(tmp_path, lambda *seen: told.append(seen), available=available, reserve=0))
    assert told[-1] == (21 * MB, 21 * MB)


AS_NOBODY = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, {checkout!r})
    from gpu_node.services.page_cache import WarmUp, resident_bytes, weight_files
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    root = Path({root!r})
    with (root / "theirs.safetensors").open("rb") as file:
        assert resident_bytes(file.fileno(), 0, 2 << 20) is None, "not ours: the kernel lies"
    warm_up = WarmUp(root, reserve=0)
    warm_up.start(); assert warm_up.join(30)
    print(len(weight_files(root)), warm_up.read, warm_up.total)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_users_files(tmp_path: Path) -> None:
    """What is not permitted is left out; what may only be read is read, residency being unknown."""
    write(tmp_path / "theirs.safetensors", 2 * MB).chmod(0o644)
    write(tmp_path / "secret.safetensors", 3 * MB).chmod(0o600)
    write(tmp_path / "closed" / "x.safetensors").parent.chmod(0o700)
    for parent in [tmp_path, *tmp_path.parents]:
        if (
            parent.stat().st_uid == os.geteuid()
            and parent.is_relative_to("/tmp")
            and parent != Path("/tmp")
        ):
            parent.chmod(0o755)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(AS_NOBODY).format(checkout=str(ROOT), root=str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["2", str(2 * MB), str(2 * MB)], done.stderr


def test_a_reader_beside_it_gets_the_same_bytes(tmp_path: Path) -> None:
    content = os.urandom(MB) * 64
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    make_cold(file)
    warm_up = WarmUp(tmp_path, reserve=0)
    warm_up.start()
    assert file.read_bytes() == content
    assert warm_up.join(60)
    assert warm_up.done == 64 * MB


# ---------------------------------------------------------------- memory


def test_available_memory_is_a_figure_of_this_machine() -> None:
    assert 0 < available_memory() < PLENTY


def test_time_goes_on_while_it_runs(tmp_path: Path) -> None:
    warm_up = WarmUp(tmp_path)
    assert warm_up.seconds == 0
    run(warm_up)
    took = warm_up.seconds
    time.sleep(0.01)
    assert warm_up.seconds == took
