"""Lines out of chunks, and no secret in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_node.services.log_lines import LAST_BYTES, LOG_BYTES, MAX_LINES, LineSink, secrets_of
from qwenctl.lib.redaction import redacted
from qwenctl.protocol.messages import Progress, Service


class Listener:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen: list[Progress] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)


def test_lines_come_whole_whatever_the_chunks(tmp_path: Path) -> None:
    listener = Listener()
    sink = LineSink(tmp_path / "x.log", listener)
    for chunk in (b"one\ntw", b"o\r", b"\nthr\xc3", b"\xa9e", b"\n\n\x1b[31mred\x1b[0m"):
        sink.feed(chunk)
    assert listener.lines == ["one", "two", "thrée"]
    sink.close()
    assert listener.lines[-1] == "red"
    assert (tmp_path / "x.log").read_text() == "one\ntwo\nthrée\nred\n"


def test_a_bar_that_is_drawn_over_is_progress_and_no_line(tmp_path: Path) -> None:
    listener = Listener()
    sink = LineSink(tmp_path / "x.log", listener)
    sink.feed(b"\rLoading checkpoint shards:  25%|##  | 1/4\rLoading checkpoint shards:  50%|")
    assert [p.percent for p in listener.seen] == [25, 50]
    assert listener.lines == []


def test_a_line_without_an_end_does_not_grow_for_ever(tmp_path: Path) -> None:
    listener = Listener()
    sink = LineSink(tmp_path / "x.log", listener)
    for _ in range(100):
        sink.feed(b"x" * 1000)
    assert listener.lines
    assert max(map(len, listener.lines)) <= 8192


def test_a_log_that_cannot_be_written_does_not_stop_the_lines(tmp_path: Path) -> None:
    listener = Listener()
    sink = LineSink(tmp_path / "missing" / "x.log", listener)
    sink.feed(b"hello\n")
    sink.close()
    assert listener.lines == ["hello"]


def test_the_values_of_secret_variables_and_options_are_masked() -> None:
    env = {"HF_TOKEN": "abc-def-123", "MODEL": "small-one", "DB_PASS": "hush-hush", "A_KEY": "x"}
    service = Service(
        command=(
            "serve",
            "--api-key",
            "key-of-ours",
            "--auth-token=tok-of-ours",
            "--port",
            "80001",
        ),
        env=env,
    )
    secrets = secrets_of(service, {**env, "PLAIN": "from-the-file"})
    assert set(secrets) == {
        *("abc-def-123", "hush-hush"),  # "x" would be in every word
        *("key-of-ours", "tok-of-ours"),
        "from-the-file",
    }
    assert redacted("token=abc-def-123 for small-one", secrets) == "token=*** for small-one"


@pytest.mark.parametrize(
    "text",
    [
        "using hf_abcdefghijklmnopqrstuv now",
        "key sk-abcdefghijklmnopqrstuvwx now",
        "key qk_abcdefghijklmnopqrstuvwx now",
        "Authorization: Bearer abcdefghijklmnop",
        "pip https://user:abcdefgh@host/x",
        "http://127.0.0.1:8888/?token=abcdefgh now",
        "id LTAI5tabcdefghijklmn now",
        "id AKIAABCDEFGHIJKLMNOP now",
    ],
)
def test_what_has_the_form_of_a_secret_is_masked(text: str) -> None:
    masked = redacted(text)
    assert "***" in masked
    assert "bcdefgh" not in masked.lower()


@pytest.mark.parametrize(
    "text", ["Loading hf_hub", "http://127.0.0.1:7860/", "10:30:12 took 3s @ host", "task-123"]
)
def test_other_text_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_others_have_put_in_the_logs_place_is_not_written_to(
    tmp_path: Path, kind: str
) -> None:
    log_file, victim = tmp_path / "x.log", tmp_path / "victim"
    victim.write_text("precious")
    if kind == "pipe":
        os.mkfifo(log_file)  # open(2) would wait for a reader
    else:
        log_file.symlink_to(victim)
    listener = Listener()
    sink = LineSink(log_file, listener)
    sink.feed(b"line\n")
    sink.close()
    assert listener.lines == ["line"]
    assert victim.read_text() == "precious"


def test_progress_that_is_no_progress_ends_nothing(tmp_path: Path) -> None:
    """Whoever reads the output must go on, or the service stands still at a full pipe."""
    listener = Listener()
    sink = LineSink(tmp_path / "x.log", listener)
    for words in (b"[" * 8000, b'{"percent": 1' + b"0" * 400 + b"}", b'{"percent": NaN}', b"1"):
        sink.feed(b"QWENCTL_PROGRESS " + words + b"\n")
    sink.feed(b"after\n")
    sink.close()
    assert listener.lines[-1] == "after"


def test_a_flood_is_thinned_and_its_last_words_stay(tmp_path: Path) -> None:
    """10 GB of a loop that logs must not hold up the service, nor fill disk and memory."""
    listener, now = Listener(), 0.0
    sink = LineSink(tmp_path / "x.log", listener, clock=lambda: now)
    line = b"INFO 10-26 21:47:45 all is well here\n"
    chunk = line * (65536 // len(line))
    for _ in range(200):
        sink.feed(chunk)
    assert len(listener.lines) < 2 * MAX_LINES + 200 * (LAST_BYTES // len(line) + 2)
    sink.feed(b"x\r" * 40_000)
    sink.feed(chunk + b"Traceback\nCUDA out of memory\n")
    assert listener.lines[-2:] == ["Traceback", "CUDA out of memory"]
    kept = len(listener.lines)
    now = 1.0
    sink.feed(b"quiet again\n")
    sink.close()
    assert listener.lines[-1] == "quiet again"
    left_out = int(listener.lines[-2].split()[0].lstrip("("))
    assert left_out + kept == 201 * (65536 // len(line)) + 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * LOG_BYTES + len(chunk)
