from __future__ import annotations

import pytest

from qwenctl.lib.text import duration, escape_control, one_line, size


def test_control_characters_are_escaped_or_replaced() -> None:
    assert escape_control("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
    assert escape_control("a\x1b[31mb\n", " ") == "a [31mb "
    assert escape_control("GPU 你好 é") == "GPU 你好 é"


def test_one_line_says_where_the_rest_is() -> None:
    assert one_line("first\x07") == "first\\x07"
    assert one_line("first\nsecond") == "first (more in `qwenctl logs`)"
    assert one_line("") == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.4, "0.4 s"), (12, "12 s"), (185, "3 min 5 s"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert size(512 * 2**20) == "512 MiB"
    assert size(8.5 * 2**30) == "8.5 GiB"
