"""Which claims of work are believed, and for how long."""

from __future__ import annotations

import pytest

from gpu_node.machine.nvidia import GpuView
from gpu_node.services.evidence import AT_WORK, STUCK, UNSEEN, Evidence, UnansweredProbes
from gpu_node.services.probe import Work, sum_counters
from qwenctl.lib.http_probe import ProbeResult
from qwenctl.protocol.messages import GpuFigures
from tests.support.virtual_time import VirtualClock

BLIND = GpuView((), "no NVIDIA driver on this machine", None)


def gpu(percent: float, memory: int = 7) -> GpuView:
    return GpuView(
        (GpuFigures(index="0", utilisation_percent=percent, memory_used=memory),), "", 0.0
    )


class Judge:
    """An `Evidence` that is asked each 5 s."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.evidence = Evidence(self.clock)

    def after(self, seconds: float, work: Work, view: GpuView = BLIND, load: int = 0) -> int:
        """What is believed after so long with these claims."""
        believed = -1
        for _ in range(int(seconds / 5) + 1):
            believed = self.evidence.judge(work, load, view, ("all",))
            self.clock.advance(5)
        return believed


STUCK_GAUGE = Work(1, 5000.0)


class TestServersClaim:
    def test_a_gauge_that_sticks_is_doubted_and_that_is_said(self) -> None:
        judge = Judge()
        assert judge.after(STUCK - 5, STUCK_GAUGE) == 1
        assert judge.evidence.doubt == ""
        assert judge.after(0, STUCK_GAUGE) == 0
        assert judge.evidence.doubt == (
            "the server says that 1 request runs, but no token has come for 15 min: not counted"
        )

    def test_one_token_is_enough(self) -> None:
        judge = Judge()
        for token in range(20):
            assert judge.after(STUCK - 10, Work(1, 5000.0 + token)) == 1

    def test_new_work_counts_at_once_beside_a_claim_in_doubt(self) -> None:
        judge = Judge()
        assert judge.after(STUCK, STUCK_GAUGE) == 0
        assert judge.after(0, Work(2, 5000.0)) == 2
        assert judge.after(600, Work(2, 5100.0)) == 2
        assert judge.after(0, Work(0, 5200.0)) == 0
        assert judge.evidence.doubt == ""

    def test_a_long_prefill_is_seen_by_the_gpu(self) -> None:
        judge = Judge()
        assert judge.after(AT_WORK - 5, STUCK_GAUGE, gpu(98)) == 1
        assert judge.after(0, STUCK_GAUGE, gpu(98)) == 0  # it hangs in a kernel

    def test_a_driver_that_falls_silent_changes_nothing_at_once(self) -> None:
        judge = Judge()
        assert judge.after(STUCK + 300, STUCK_GAUGE, gpu(98)) == 1
        assert judge.after(60, STUCK_GAUGE, BLIND) == 1
        assert judge.after(STUCK, STUCK_GAUGE, BLIND) == 0

    def test_without_counters_only_an_idle_gpu_speaks_against_it(self) -> None:
        claim = Work(1)
        assert Judge().after(AT_WORK * 3, claim, BLIND) == 1
        assert Judge().after(AT_WORK * 3, claim, gpu(50)) == 1
        judge = Judge()
        assert judge.after(AT_WORK, claim, gpu(50)) == 1
        assert judge.after(STUCK - 5, claim, gpu(0)) == 1
        assert judge.after(10, claim, gpu(0)) == 0
        assert "no GPU has worked for 15 min" in judge.evidence.doubt
        assert judge.after(0, claim, gpu(50)) == 1

    def test_no_claim_is_for_ever(self) -> None:
        judge = Judge()
        assert judge.after(UNSEEN - 5, Work(1)) == 1
        assert judge.after(0, Work(1)) == 0


class TestGpusClaim:
    def test_a_server_that_runs_nothing_speaks_against_it(self) -> None:
        judge = Judge()
        assert judge.after(AT_WORK - 5, Work(0, 5000.0), gpu(100), load=1) == 1
        assert judge.after(0, Work(0, 5000.0), gpu(100), load=1) == 0
        assert "the GPU is at work, but the server runs nothing" in judge.evidence.doubt

    def test_figures_that_move_are_work(self) -> None:
        judge = Judge()
        for minute in range(2000):
            assert judge.after(50, Work(known=False), gpu(100, memory=minute), load=1) == 1

    def test_figures_that_never_move_are_not(self) -> None:
        judge = Judge()
        assert judge.after(UNSEEN - 5, Work(known=False), gpu(100), load=1) == 1
        assert judge.after(0, Work(known=False), gpu(100), load=1) == 0


@pytest.mark.parametrize(
    ("gauge", "text", "total"),
    [
        (
            "vllm:num_requests_running",
            """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 1.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 40.0
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0"} 1.7e+09
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop"} 2.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{le="+Inf"} 9.0
vllm:iteration_tokens_total_count 9.0
vllm:iteration_tokens_total_sum 100.0
# TYPE http_requests_total counter
http_requests_total{handler="/metrics"} 800.0
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 77.0
""",
            151.0,
        ),
        (
            "sglang:num_running_reqs",
            "sglang:num_running_reqs 1\nsglang:generation_tokens_total 5\nsglang:gen_throughput 3\n",
            5.0,
        ),
        (
            "tgi_batch_current_size",
            """\
# TYPE tgi_batch_inference_count counter
tgi_batch_inference_count{method="decode"} 7
# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 99
""",
            7.0,
        ),
        (
            "llamacpp:requests_processing",
            """\
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 12
# TYPE llamacpp:n_tokens_max gauge
llamacpp:n_tokens_max 4
""",
            12.0,
        ),
        (
            "nv_inference_pending_request_count",
            """\
# TYPE nv_inference_count counter
nv_inference_count 3
# TYPE nv_energy_consumption counter
nv_energy_consumption 99.5
""",
            3.0,
        ),
        ("running", "running 1\nother_tokens_total 4\n", None),
    ],
)
def test_counters_that_move_with_the_work(gauge: str, text: str, total: float | None) -> None:
    assert sum_counters(text, (gauge,)) == total


def test_silence_is_told_after_minutes_and_not_of_a_service_at_work() -> None:
    now = [0.0]
    silence = UnansweredProbes(lambda: now[0])

    def look(at: float, found: ProbeResult = ProbeResult.SILENT, active: int = 0) -> str:
        now[0] = at
        return silence.look(found, "/", active)

    assert (look(0), look(179)) == ("", "")
    assert look(200).startswith("it has not answered GET / for 3 min")
    assert look(210, active=1) == ""
    assert "for 4 min" in look(250)
    assert look(260, ProbeResult.READY) == ""
    assert (look(270), look(449)) == ("", "")
    now[0] = 100_000.0
    told = silence.look(ProbeResult.SILENT, "/" + "a" * 500, 0)
    assert told.endswith("`qwenctl restart` ends it")
    assert len(told) < 300
