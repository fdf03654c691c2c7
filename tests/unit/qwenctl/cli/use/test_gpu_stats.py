"""The node's figures, in `qwenctl status` and for Prometheus."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.http.metrics import Metrics
from qwenctl.cli.use.gpu_stats import figure_lines
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import full_status
from qwenctl.protocol.messages import GpuFigures, Report, Resources

NOW = 10_000.0

H100 = GpuFigures(
    index="0",
    uuid="GPU-1",
    name="NVIDIA H100 80GB HBM3",
    utilisation_percent=37,
    memory_used=44_163_923_968,
    memory_total=85_520_809_984,
    temperature=61,
    power=310.244,
    power_limit=700,
)
PARENT = GpuFigures(
    index="1", name="NVIDIA A100-SXM4-40GB", memory_used=0, memory_total=42_505_273_344, power=51
)
PART = GpuFigures(
    index="1:2",
    name="NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    mig_parent="GPU-2",
    memory_used=13_631_488,
    memory_total=5_100_273_664,
)
LOST = GpuFigures(index="2", error="lost: it has fallen off the bus; stop and start the instance")


def lines(**resources: Any) -> list[str]:
    return list(figure_lines(Resources(**resources).model_dump(mode="json")))


def snapshot(phase: str = "ready", uptime: float = 1800.0, **resources: Any) -> Snapshot:
    report = Report(
        gpu="main",
        boot_id="boot-0001",
        start_seq=1,
        state="ready",
        uptime=uptime,
        resources=Resources(**resources),
    )
    node = {
        "boot_id": "boot-0001",
        "state": "ready",
        "seen_at": str(int((NOW - 36) * 1000)),
        "report": report.model_dump_json(exclude={"log"}),
    }
    return Snapshot("main", NOW, {"phase": phase, "observed": "running"}, node=node)


def test_one_line_for_each_gpu() -> None:
    assert lines(gpus=(H100, PARENT, PART, LOST), gpus_age=0.1) == [
        "GPU 0 H100 80GB HBM3  37 %  41/80 GiB  61 °C  310/700 W",
        "GPU 1 A100-SXM4-40GB  0.0/40 GiB  51 W",
        "GPU 1:2 A100-SXM4-40GB MIG 1g.5gb  0.0/4.8 GiB",
        "GPU 2  lost: it has fallen off the bus; stop and start the instance",
    ]


def test_the_machine_is_one_line() -> None:
    told = lines(
        cpu_percent=12.4,
        memory_used=2**30,
        memory_total=2**35,
        disk_free=2**36,
        disk_used_percent=61.7,
    )
    assert told == ["CPU 12 %, memory 1.0 of 32.0 GiB, disk 64 GiB free (62 % used)"]


def test_what_the_node_says_cannot_steer_the_terminal() -> None:
    evil = "H100\x1b[2J\rready\x9b"
    gpus = (GpuFigures(index="0\x07", name=evil, error=f"{evil}\nmain is off"),)
    shown = lines(gpus=gpus, gpu_note=f"{evil}\nmain is off")
    assert len(shown) == 2
    assert all(line.isprintable() and "main is off" not in line for line in shown)
    assert "H100\\x1b[2J" in shown[0]


def test_why_there_are_none() -> None:
    note = "no NVIDIA driver on this machine: libnvidia-ml.so.1 is not there"
    assert lines(gpu_note=note, gpus_age=0.0) == [note]


def test_old_figures_are_called_old() -> None:
    hung = "the NVIDIA driver has not answered for 40 s"
    assert lines(gpus=(PART,), gpu_note=hung, gpus_age=42.4)[1:] == [
        f"{hung}; these GPU figures are 42 s old"
    ]
    assert lines(gpus=(PART,), gpus_age=20.0)[1:] == [
        "the driver is slow; these GPU figures are 20 s old"
    ]


def test_a_report_of_an_earlier_agent_has_lines_too() -> None:
    assert list(figure_lines({"cpu_percent": 1.0, "disk_free": 2**30, "gpus": []})) == [
        "CPU 1 %, disk 1 GiB free"
    ]


@pytest.mark.parametrize(
    ("phase", "price", "cost"),
    [
        ("ready", 10.0, 5.1),
        ("loading", 10.0, 5.1),
        ("draining", 10.0, 5.1),
        ("stopping", 10.0, None),
        ("failed", 10.0, None),
        ("off", 10.0, None),
        ("ready", 0.0, None),
    ],
)
def test_the_cost_of_the_time_since_it_booted(phase: str, price: float, cost: float | None) -> None:
    told = full_status(snapshot(phase), [], GpuConfig(price_per_hour=price))
    assert told["cost_so_far"] == cost


def test_no_cost_before_the_agent_tells() -> None:
    told = full_status(
        Snapshot("main", NOW, {"phase": "booting"}), [], GpuConfig(price_per_hour=10.0)
    )
    assert told["cost_so_far"] is None


def test_no_cost_without_an_agent() -> None:
    told = full_status(snapshot(uptime=0.0), [], GpuConfig(price_per_hour=10.0, agent=False))
    assert told["cost_so_far"] is None


def test_status_has_the_figures_as_they_are() -> None:
    told = full_status(snapshot(gpus=(H100,), gpus_age=0.5), [], GpuConfig())
    (gpu,) = told["node"]["resources"]["gpus"]
    assert gpu == H100.model_dump()


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    prefix = "qwenctl_node_gpu_"
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name.startswith(prefix):
                assert sample.labels.pop("gpu") == "main"
                found[sample.name.removeprefix(prefix), sample.labels["index"]] = sample.value
    return found


def test_gauges_of_each_gpu_and_of_none_that_is_gone() -> None:
    metrics = Metrics()
    metrics.observe(snapshot(gpus=(H100, PART, LOST)), 0)
    assert samples(metrics) == {
        ("utilisation_percent", "0"): 37,
        ("memory_used_bytes", "0"): 44_163_923_968,
        ("memory_used_bytes", "1:2"): 13_631_488,
        ("memory_total_bytes", "0"): 85_520_809_984,
        ("memory_total_bytes", "1:2"): 5_100_273_664,
        ("temperature_celsius", "0"): 61,
        ("power_watts", "0"): 310.244,
    }
    metrics.observe(snapshot(gpus=(PART,)), 0)
    assert {index for _, index in samples(metrics)} == {"1:2"}
    for phase in ("off", "stopping", "failed"):
        metrics.observe(snapshot("ready", gpus=(H100,)), 0)
        metrics.observe(snapshot(phase, gpus=(H100,)), 0)
        assert samples(metrics) == {}
