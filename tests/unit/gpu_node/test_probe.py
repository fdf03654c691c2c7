from __future__ import annotations

import pytest

from gpu_node.probe import sum_samples

TEXT = """\
# HELP vllm:num_requests_running Requests being run.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a} 9"} 2.0
vllm:num_requests_running{engine="1",model_name="b"} 1.0 1700000000
vllm:num_requests_running_total 50
vllm:num_requests_waiting 4
broken{x="y"}
half 0.5
nothing NaN
"""


@pytest.mark.parametrize(
    ("names", "total"),
    [
        (("vllm:num_requests_running",), 3),
        (("vllm:num_requests_running", "vllm:num_requests_waiting"), 7),
        (("half",), 1),
        (("nothing",), None),
        (("broken",), None),
        (("absent",), None),
    ],
)
def test_samples_are_added_up(names: tuple[str, ...], total: int | None) -> None:
    assert sum_samples(TEXT, names) == total
