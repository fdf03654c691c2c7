"""Calls to the clouds: a hundred GPUs on one proxy, idle, and from a wake to the cloud's start call.

The proxy is `qwenctl serve` with a hundred GPUs of one account; the clouds are moto's EC2 server and
the tests' fake ECS endpoint, which verifies signatures, behind a proxy that notes each call. The
number of calls of one boot does not depend on the machine, so tests measure it under virtual time:
`test_calls_of_one_boot_and_one_stop`, `test_calls_for_a_boot_of_ninety_seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from benchmarks.harness import (
    CannotMeasure,
    Report,
    Row,
    Target,
    children,
    free_port,
    main,
    median,
    percentile,
    scratch,
    until,
    wait_port,
)
from tests.support.fake_ecs import FakeEcs
from tests.support.faults import FaultProxy
from tests.support.moto_cloud import CREDENTIALS, REGION, MotoCloud

GPUS = 100
START_LIMIT = 50.0  # ms, of the median, as for the local provider
CALLS_LIMIT = 4.0  # DescribeInstances a minute for all GPUs


@dataclass
class Cloud:
    """A cloud with `GPUS` stopped instances."""

    provider: str
    calls: FaultProxy
    ids: Sequence[str]
    settings: str
    """The lines of each GPU's table that say where the instance is."""
    env: dict[str, str]
    start_action: str


@contextlib.contextmanager
def aliyun(_: Path) -> Iterator[Cloud]:
    with FakeEcs() as fake, FaultProxy(f"http://{fake.endpoint}") as calls:
        ids = [f"i-bp1bench{number:04}" for number in range(GPUS)]
        for id_ in ids:
            fake.cloud.add(id_)
        settings = (
            f'region = "{fake.cloud.region}"\nprotocol = "http"\n'
            f'endpoint = "{calls.url.removeprefix("http://")}"\n'
        )
        env = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": fake.key.id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": fake.key.secret,
        }
        yield Cloud("aliyun", calls, ids, settings, env, "StartInstance")


@contextlib.contextmanager
def aws(directory: Path) -> Iterator[Cloud]:
    with MotoCloud(directory / "moto.log") as moto, FaultProxy(moto.url) as calls:
        client = moto.client()
        ids = [moto.new_instance(client) for _ in range(GPUS)]
        settings = f'region = "{REGION}"\nendpoint_url = "{calls.url}"\n'
        yield Cloud("aws", calls, ids, settings, CREDENTIALS, "StartInstances")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=int, default=3, help="how long the idle proxy is watched")
    parser.add_argument("--wakes", type=int, default=30, help="how many wakes")


def run(given: argparse.Namespace) -> Report:
    minutes, wakes = (1, 3) if given.quick else (given.minutes, given.wakes)
    report = Report("cloud", "Cloud calls", {"gpus": GPUS, "minutes": minutes, "wakes": wakes})
    idle: list[Row] = []
    starts: list[Row] = []
    for kind in (aliyun, aws):
        with scratch() as directory, kind(directory) as cloud:
            described, cpu, memory, times = _measure(cloud, directory, minutes, wakes)
        idle.append(
            {
                "cloud": cloud.provider,
                "DescribeInstances a minute": round(described, 1),
                "of one call each": round(described / GPUS, 3),
                "proxy CPU %": round(cpu, 1),
                "proxy RSS MiB": round(memory),
            }
        )
        starts.append(
            {
                "cloud": cloud.provider,
                "n": str(len(times)),
                "p50 ms": round(median(times), 1),
                "p99 ms": round(percentile(times, 99), 1),
            }
        )
        report.targets += [
            Target(f"{cloud.provider}: looks a minute, {GPUS} GPUs", described, CALLS_LIMIT),
            Target(f"{cloud.provider}: wake → start call, p50 ms", median(times), START_LIMIT),
        ]
    report.tables[f"{GPUS} GPUs, all off"] = idle
    report.tables["wake → the cloud gets the start call"] = starts
    report.notes.append("on Alibaba Cloud a start is two calls: it looks first")
    return report


def _measure(
    cloud: Cloud, directory: Path, minutes: int, wakes: int
) -> tuple[float, float, float, list[float]]:
    """Looks a minute, CPU in percent, MiB, and the milliseconds of each wake."""
    port = free_port()
    file = directory / "qwenctl.toml"
    file.write_text(_config(cloud, directory, port))
    env = {key: value for key, value in os.environ.items() if not key.startswith("QWENCTL_")}
    url = f"http://127.0.0.1:{port}/_qwenctl"
    with children() as start:
        command = [sys.executable, "-m", "proxy", "--config", str(file)]
        process = start(command, env={**env, **cloud.env})
        proxy = psutil.Process(process.pid)
        wait_port(port, process, "the proxy")

        def all_known() -> bool:
            answer = requests.get(f"{url}/api/status", params={"gpu": f"g{GPUS - 1}"}, timeout=30)
            return answer.ok and bool(cloud.calls.calls("DescribeInstances"))

        until("the proxy has looked", all_known, 60)
        time.sleep(20)  # those of the start are over
        cloud.calls.forget()
        before = sum(proxy.cpu_times()[:2])
        time.sleep(60 * minutes)
        cpu = 100 * (sum(proxy.cpu_times()[:2]) - before) / (60 * minutes)
        described = len(cloud.calls.calls("DescribeInstances")) / minutes
        memory = proxy.memory_info().rss / 2**20
        times = [_wake(cloud, url, f"g{number}") for number in range(wakes)]
    return described, cpu, memory, times


def _wake(cloud: Cloud, url: str, gpu: str) -> float:
    before = len(cloud.calls.calls(cloud.start_action))
    clicked = time.time()
    answer = requests.post(f"{url}/api/wake", params={"gpu": gpu}, timeout=30)
    if not answer.ok:
        raise CannotMeasure(f"the wake was refused: {answer.status_code} {answer.text}")
    until("the start call", lambda: len(cloud.calls.calls(cloud.start_action)) > before)
    # Noted when it came in, so it does not matter how late we look.
    return 1000 * (cloud.calls.calls(cloud.start_action)[before].time - clicked)


def _config(cloud: Cloud, directory: Path, port: int) -> str:
    tables = [f'state_dir = "{directory}/state"\n[proxy]\nlisten = "127.0.0.1:{port}"\n']
    for number, id_ in enumerate(cloud.ids):
        tables.append(
            f'[gpu.g{number}]\nprovider = "{cloud.provider}"\nhosts = ["g{number}.test"]\n'
            f'[gpu.g{number}.{cloud.provider}]\ninstance_id = "{id_}"\n{cloud.settings}'
        )
    return "\n".join(tables)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", run, options))
