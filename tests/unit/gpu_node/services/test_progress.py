from __future__ import annotations

import json

import pytest

from gpu_node.services.progress import Tracker, parse_progress
from qwenctl.protocol.messages import Progress


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
        ("Fetching 12 files: 100%|██████████| 12/12 [00:00<00:00]", "download", 100),
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


VLLM_LOG = """\
INFO 11-02 23:54:16 [__init__.py:216] Automatically detected platform cuda.
(APIServer pid=2436) INFO 11-02 23:54:17 [api_server.py:1839] vLLM API server version 0.11.0
(EngineCore_DP0 pid=387) INFO 10-26 21:47:43 [gpu_model_runner.py:2602] Starting to load model Qwen/Qwen3-VL-8B-Instruct...
(EngineCore_DP0 pid=387) INFO 10-26 21:47:44 [weight_utils.py:304] Using model weights format ['*.safetensors']
Loading safetensors checkpoint shards:   0% Completed | 0/3 [00:00<?, ?it/s]
(EngineCore_DP0 pid=387) Loading safetensors checkpoint shards:  33% Completed | 1/3 [00:24<00:49, 24.61s/it]
Loading safetensors checkpoint shards: 100% Completed | 3/3 [00:01<00:00,  2.50it/s]
(EngineCore_DP0 pid=387)
(EngineCore_DP0 pid=387) INFO 10-26 21:47:45 [default_loader.py:267] Loading weights took 1.27 seconds
(EngineCore_DP0 pid=387) INFO 10-26 21:47:46 [gpu_model_runner.py:1975] Model loading took 7.6785 GiB and 2.195456 seconds
(EngineCore_DP0 pid=387) INFO 10-26 21:47:50 [backends.py:538] Using cache directory: /root/.cache/vllm/torch_compile_cache/f78161e411/rank_0_0/backbone for vLLM's torch.compile
(EngineCore_DP0 pid=387) INFO 10-26 21:47:50 [backends.py:549] Dynamo bytecode transform time: 3.70 s
(EngineCore_DP0 pid=387) INFO 10-26 21:47:56 [backends.py:161] Directly load the compiled graph(s) for dynamic shape from the cache, took 5.920 s
(EngineCore_DP0 pid=387) INFO 10-26 21:47:59 [monitor.py:34] torch.compile takes 3.70 s in total
(EngineCore_DP0 pid=387) INFO 10-26 21:48:00 [gpu_worker.py:276] Available KV cache memory: 18.38 GiB
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  40%|████      | 27/67 [00:02<00:03, 11.10it/s]
Capturing CUDA graphs (decode, FULL):  97%|█████████▋| 65/67 [00:15<00:00,  4.58it/s]
(EngineCore_DP0 pid=387) INFO 10-26 21:48:12 [gpu_model_runner.py:3468] Graph capturing finished in 38 secs, took 1.64 GiB
(EngineCore_DP0 pid=387) INFO 10-26 21:48:12 [core.py:218] init engine (profile, create kv cache, warmup model) took 24.81 seconds
(APIServer pid=2436) INFO 10-26 21:48:14 [api_server.py:1912] Starting vLLM API server 0 on http://0.0.0.0:8000
(APIServer pid=2436) INFO:     Started server process [2436]
(APIServer pid=2436) INFO:     Waiting for application startup.
(APIServer pid=2436) INFO:     Application startup complete."""

VLLM_TOLD = [
    None,
    None,
    ("weights", None, "Starting to load model"),
    None,
    ("weights", 0, "Loading safetensors checkpoint shards"),
    ("weights", 33, "Loading safetensors checkpoint shards"),
    ("weights", 100, "Loading safetensors checkpoint shards"),
    None,
    ("weights", 100, "Loading weights took 1.27 seconds"),
    ("weights", 100, "Model loading took 7.6785 GiB"),
    None,
    ("warm-up", None, "Dynamo bytecode transform time: 3.70 s"),
    ("warm-up", None, "Directly load the compiled graph"),
    ("warm-up", None, "torch.compile takes 3.70 s"),
    ("warm-up", None, "Available KV cache memory: 18.38 GiB"),
    ("warm-up", 20, "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE)"),
    ("warm-up", 98.5, "Capturing CUDA graphs (decode, FULL)"),
    ("warm-up", 100, "Graph capturing finished in 38 secs"),
    ("warm-up", 100, "init engine (profile, create kv cache, warmup model) took 24.81 s"),
    ("warm-up", 100, "Starting vLLM API server"),
    ("warm-up", None, "Started server process"),
    ("warm-up", None, "Waiting for application startup"),
    ("warm-up", 100, "Application startup complete"),
]


def test_a_start_of_vllm_is_understood_line_by_line() -> None:
    told = [parse_progress(line) for line in VLLM_LOG.splitlines()]
    assert [one and (one.phase, one.percent, one.text) for one in told] == VLLM_TOLD


@pytest.mark.parametrize(
    ("line", "phase", "percent"),
    [
        # Transformers 4 and 5, Diffusers
        ("Loading checkpoint shards:  50%|█████     | 1/2 [00:00<00:00,  1.42it/s]", "weights", 50),
        ("Loading weights:   4%|▍         | 15/355 [00:00<00:06, 51.92it/s]", "weights", 4),
        ("Loading pipeline components...:  71%|███████▏  | 5/7 [00:01<00:00]", "weights", 71),
        # Hugging Face: all files, one of several shards at once, the only file
        ("Fetching 14 files:  71%|███████▏  | 10/14 [01:01<00:20]", "download", 71),
        ("Downloading shards:  50%|█████     | 1/2 [01:01<01:01]", "download", 50),
        (
            "model-00007-of-00017.safetensors:  23%|██▎       | 912M/3.90G [00:23<00:45, 65.8MB/s]",
            "download",
            None,
        ),
        ("Downloading (…)of-00015.safetensors:  23%|██▎       | 912M/3.90G", "download", None),
        ("model.safetensors:  23%|██▎       | 912M/3.90G [00:23<00:45, 65.8MB/s]", "download", 23),
        # vLLM, older and newer
        (
            "INFO 04-03 14:16:16 model_runner.py:1008] Loading model weights took 12.5523 GB",
            "weights",
            100,
        ),
        (
            "(EngineCore pid=1992345) INFO 08-26 22:26:03 [gpu_model_runner.py:4820] Model loading took 13.5 GiB memory and 54.145678 seconds",
            "weights",
            100,
        ),
        (
            "(EngineCore pid=542) INFO 07-08 22:40:03 [monitor.py:53] torch.compile took 16.27 s in total",
            "warm-up",
            None,
        ),
        (
            "INFO 04-03 14:16:19 model_runner.py:1311] Capturing the model for CUDA graphs. This may lead to",
            "warm-up",
            None,
        ),
        ("Capturing CUDA graphs (PIECEWISE): 100%|██████████| 3/3 [00:04<00:00]", "warm-up", 50),
        ("Capturing CUDA graphs (FULL):  50%|█████     | 1/2 [00:00<00:00]", "warm-up", 75),
        # Gradio, Uvicorn
        ("* Running on local URL:  http://0.0.0.0:7860", "warm-up", 100),
        ("INFO:     Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)", "warm-up", 100),
    ],
)
def test_other_programs_and_versions(line: str, phase: str, percent: float | None) -> None:
    progress = parse_progress(line)
    assert progress is not None
    assert (progress.phase, progress.percent) == (phase, percent)


@pytest.mark.parametrize(
    "line",
    [
        "config.json: 100%|██████████| 1.52k/1.52k [00:00<00:00]",
        "Processed prompts:  50%|█████     | 1/2 [00:00<00:00, est. speed input: 0.00 toks/s]",
        'INFO:     127.0.0.1:5000 - "GET /_app/immutable/chunks/a.js HTTP/1.1" 304 Not Modified',
        "Loading WEBUI_SECRET_KEY from .webui_secret_key",
        "INFO 05-06 21:00:00 Avg generation throughput: 90.1 tokens/s, GPU KV cache usage: 1.0%",
    ],
)
def test_what_is_no_way_to_ready(line: str) -> None:
    assert parse_progress(line) is None


# ---------------------------------------------------------------- the tracker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tell(tracker: Tracker, phase: str, percent: float | None = None, text: str = "") -> Progress:
    return tracker.report(Progress(phase=phase, percent=percent, text=text))


def test_the_start_of_vllm_never_runs_backwards() -> None:
    tracker = Tracker()
    seen = [tracker.report(one) for line in VLLM_LOG.splitlines() if (one := parse_progress(line))]
    for phase in ("weights", "warm-up"):
        percents = [one.percent for one in seen if one.phase == phase and one.percent is not None]
        assert percents == sorted(percents)
        assert percents[-1] == 100
    phases = [one.phase for one in seen]
    assert phases == sorted(phases, key=["weights", "warm-up"].index)


def test_within_a_phase_the_percent_is_the_highest_so_far() -> None:
    tracker = Tracker()
    assert tell(tracker, "weights").percent is None
    assert tell(tracker, "weights", 60).percent == 60
    assert tell(tracker, "weights", 20).percent == 60
    held = tell(tracker, "weights", None, "still at it")
    assert (held.percent, held.text) == (60, "still at it")
    assert tell(tracker, "warm-up", 5).percent == 5


def test_only_a_bar_goes_back_to_an_earlier_phase() -> None:
    tracker = Tracker()
    tell(tracker, "warm-up", None, "Started server process")
    assert tell(tracker, "weights", None).phase == "warm-up"
    assert tell(tracker, "start", None).phase == "warm-up"
    assert tell(tracker, "download", 10).phase == "download"
    assert tell(tracker, "mine", None).phase == "mine"  # a service's own phases have no order


def test_the_eta_is_of_the_phase_and_waits_until_it_means_something() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    assert tell(tracker, "weights", 0).eta is None
    clock.now += 1
    assert tell(tracker, "weights", 10).eta is None  # one second is no rate
    clock.now += 1
    assert tell(tracker, "weights", 20).eta == 8
    clock.now += 3
    assert tell(tracker, "weights", 20).eta == 5  # time goes on between two shards
    clock.now += 100
    assert tell(tracker, "weights", 20).eta is None  # it stalls: nobody knows
    assert tell(tracker, "weights", 100).eta is None
    assert tell(tracker, "warm-up", 10).eta is None


def test_hardly_any_progress_gives_no_eta() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    tell(tracker, "weights", 0)
    clock.now += 60
    assert tell(tracker, "weights", 1).eta is None


def test_the_eta_follows_a_rate_that_changes_but_not_each_jump() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    percent, etas = 0.0, []
    for second in range(60):
        tell(tracker, "weights", percent)
        clock.now += 1
        percent += 2 if second < 20 else (0.1, 0.9)[second % 2]
        etas.append(tell(tracker, "weights", percent).eta)
    assert etas[18] == pytest.approx((100 - 38) / 2, abs=1)
    # 0.5 % a second since: 40 s ago, so that the old rate has been forgotten.
    assert etas[-1] is not None
    assert etas[-1] == pytest.approx((100 - percent) / 0.5, rel=0.25)


def test_many_reports_a_second_do_not_confuse_the_rate() -> None:
    clock = Clock()
    tracker = Tracker(clock)
    told = tell(tracker, "weights", 0)
    for step in range(1, 1001):
        clock.now += 0.005
        told = tell(tracker, "weights", step * 0.05)
    assert told.percent == pytest.approx(50)
    assert told.eta == pytest.approx(5, abs=1)


def test_an_eta_that_the_service_tells_itself_is_kept() -> None:
    told = Tracker().report(Progress(phase="weights", percent=40, eta=7.5))
    assert told.eta == 7.5


def test_a_guess_counts_only_while_the_service_is_silent() -> None:
    tracker = Tracker()
    tell(tracker, "pull", 50)
    assert tracker.estimate(Progress(phase="weights", percent=90)).phase == "pull"
    tell(tracker, "create")
    assert tracker.estimate(Progress(phase="weights", percent=10)).percent == 10
    tell(tracker, "weights", None, "Starting to load model")
    assert tracker.estimate(Progress(phase="weights", percent=30)).percent == 30
    tell(tracker, "weights", 33)
    assert tracker.estimate(Progress(phase="weights", percent=95)).percent == 33
    tell(tracker, "warm-up")
    assert tracker.estimate(Progress(phase="weights", percent=99)).phase == "warm-up"
