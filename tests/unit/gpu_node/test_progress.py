from __future__ import annotations

import json

import pytest

from gpu_node.progress import parse_progress
from qwenctl.wire import Progress


@pytest.mark.parametrize(
    ("line", "phase", "percent"),
    [
        (
            "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01]",
            "weights",
            50,
        ),
        (
            "Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]",
            "weights",
            0,
        ),
        (
            "Capturing CUDA graph shapes:  17%|█▋        | 6/35 [00:03<00:16,  1.79it/s]",
            "warm-up",
            17,
        ),
        ("Fetching 12 files: 100%|██████████| 12/12 [00:00<00:00]", "pull", 100),
        (" 33%|███▎      | 1/3 [00:00<00:00]", "loading", 33),
        ('QWENCTL_PROGRESS {"phase":"weights","percent":40,"text":"shard 2"}', "weights", 40),
        ('QWENCTL_PROGRESS {"phase":"warm-up"}', "warm-up", None),
    ],
)
def test_progress_is_understood(line: str, phase: str, percent: float | None) -> None:
    progress = parse_progress(line)
    assert progress is not None
    assert (progress.phase, progress.percent) == (phase, percent)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "INFO: GPU memory utilization 90% of 80 GB",
        "Loading: 250%|███",
        "QWENCTL_PROGRESS not json",
        "QWENCTL_PROGRESS [1]",
        'QWENCTL_PROGRESS {"percent": 300}',
        "GET /a%20b | 200",
    ],
)
def test_everything_else_is_left_alone(line: str) -> None:
    assert parse_progress(line) is None


def test_long_text_is_cut_to_what_the_message_allows() -> None:
    progress = parse_progress(
        "QWENCTL_PROGRESS " + json.dumps({"phase": "p" * 99, "text": "t" * 999})
    )
    assert progress == Progress(phase="p" * 40, text="t" * 400)
