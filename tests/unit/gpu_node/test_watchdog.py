from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpu_node.deadman import EXIT_POWER_OFF, DeadMan
from gpu_node.nvidia import GpuWatch, Reading
from gpu_node.settings import NodeSettings
from gpu_node.watchdog import MARGIN, look, watch
from qwenctl.wire import GpuFigures, Spec

BOOT = "boot-0001"
DAY = 86400.0


class Stop:
    def __init__(self) -> None:
        self.calls = 0

    def power_off(self) -> None:
        self.calls += 1


def gpus(load: float = 0.0) -> GpuWatch:
    return GpuWatch(lambda: Reading((GpuFigures(index="0", utilisation_percent=load),)))


@contextmanager
def agent(state_dir: Path) -> Iterator[None]:
    """What there is to see of an agent that runs."""
    with (state_dir / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(
        proxy_urls=("http://10.0.0.5:8080",),
        gpu="main",
        boot_id=BOOT,
        state_dir=str(tmp_path),
        dead_man=600.0,
    )


def contact(settings: NodeSettings, at: float, boot: str = BOOT) -> None:
    DeadMan(Path(settings.state_dir, "deadman.json"), boot, 600.0, clock=lambda: at).contact()


def fires(settings: NodeSettings, now: float, load: float = 0.0) -> bool:
    stop = Stop()
    code = watch(settings, stop=stop, gpus=gpus(load), clock=lambda: now, sleep=lambda _: None)
    assert code == (EXIT_POWER_OFF if stop.calls else 0)
    return stop.calls == 1


def test_the_limit_and_a_margin_after_the_last_contact(settings: NodeSettings) -> None:
    contact(settings, 5000.0)
    assert not fires(settings, 5000.0 + 600 + MARGIN - 1)
    assert fires(settings, 5000.0 + 600 + MARGIN)


def test_the_limit_is_the_one_that_the_proxy_has_set(settings: NodeSettings) -> None:
    file = Path(settings.state_dir, "spec.json")
    file.write_text(Spec(version="1", services=(), dead_man=3600.0).model_dump_json())
    contact(settings, 5000.0)
    assert not fires(settings, 5000.0 + 3600 + MARGIN - 1)
    assert fires(settings, 5000.0 + 3600 + MARGIN)


@pytest.mark.parametrize("limit", ["NaN", "-5", "0", "1e999"])
def test_a_limit_that_is_none_does_not_count(settings: NodeSettings, limit: str) -> None:
    Path(settings.state_dir, "spec.json").write_text(
        f'{{"version": "1", "services": [], "dead_man": {limit}}}'
    )
    contact(settings, 5000.0)
    assert not fires(settings, 5000.0 + 600 + MARGIN - 1)
    assert fires(settings, 5000.0 + 600 + MARGIN)


@pytest.mark.parametrize(
    "garbage",
    [None, "", "{", "[]", '{"boot_id": "boot-0001", "last": "x"}', '{"boot_id": 1, "last": 1e999}'],
)
def test_without_a_record_it_counts_from_the_boot(
    settings: NodeSettings, garbage: str | None
) -> None:
    for name in ("deadman.json", "spec.json", "watchdog.json"):
        if garbage is not None:
            Path(settings.state_dir, name).write_text(garbage)
    assert not fires(settings, 600 + MARGIN - 1)
    assert fires(settings, 600 + MARGIN)


def test_the_record_of_another_boot_or_of_the_future_counts_as_none(settings: NodeSettings) -> None:
    contact(settings, 400.0, boot="boot-0000")
    assert fires(settings, 600 + MARGIN)
    contact(settings, 9999.0)
    assert not fires(settings, 600 + MARGIN - 1)
    assert fires(settings, 600 + MARGIN)


def test_no_state_directory_at_all(settings: NodeSettings, tmp_path: Path) -> None:
    gone = settings.model_copy(update={"state_dir": str(tmp_path / "missing")})
    assert not fires(gone, 600 + MARGIN - 1)
    assert fires(gone, 600 + MARGIN)


def test_an_agent_that_runs_and_has_lost_its_record_is_left_alone(settings: NodeSettings) -> None:
    with agent(Path(settings.state_dir)):
        assert not fires(settings, DAY)
    # It was there a minute ago: a restart of it, or its crash, is not yet its end.
    assert not fires(settings, DAY + 60)
    assert not fires(settings, DAY + 600 + MARGIN - 1)
    assert fires(settings, DAY + 600 + MARGIN)


def test_an_agent_that_hangs_is_as_good_as_none(settings: NodeSettings) -> None:
    contact(settings, 5000.0)
    with agent(Path(settings.state_dir)):
        assert not fires(settings, 5000.0 + 600 + MARGIN - 1)
        assert fires(settings, 5000.0 + 600 + MARGIN)


def test_a_gpu_that_works_is_not_stopped(settings: NodeSettings) -> None:
    contact(settings, 5000.0)
    assert not fires(settings, DAY, load=80.0)
    assert fires(settings, DAY, load=1.0)


def test_an_agent_that_comes_back_while_the_services_are_asked(settings: NodeSettings) -> None:
    contact(settings, 5000.0)
    stop = Stop()

    def meanwhile(_: float) -> None:
        contact(settings, DAY)

    code = watch(settings, stop=stop, gpus=gpus(), clock=lambda: DAY, sleep=meanwhile)
    assert (code, stop.calls) == (0, 0)


def test_it_stops_by_the_agents_own_command(settings: NodeSettings, tmp_path: Path) -> None:
    contact(settings, 5000.0)
    command = ("touch", str(tmp_path / "off"))
    given = settings.model_copy(update={"power_off_command": command})
    assert watch(given, gpus=gpus(), clock=lambda: DAY, sleep=lambda _: None) == EXIT_POWER_OFF
    assert (tmp_path / "off").exists()


def test_the_time_of_day_means_nothing(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    contact(settings, 5000.0)
    for jump in (0.0, -5 * DAY, 400 * DAY):
        monkeypatch.setattr("time.time", lambda jump=jump: 1.7e9 + jump)
        found = look(settings, 5100.0)
        assert found is not None
        assert (found.silent, found.left) == (100.0, 600 + MARGIN - 100)


def test_it_says_that_no_agent_runs(settings: NodeSettings, caplog: Any) -> None:
    contact(settings, 5000.0)
    assert not fires(settings, 5060.0)
    assert f"no agent runs; this instance stops itself in {600 + MARGIN - 60:.0f} s" in caplog.text


def test_an_agent_whose_disk_has_become_read_only_is_left_alone(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    contact(settings, 5000.0)
    read_only = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr("gpu_node.watchdog.os.statvfs", lambda _: read_only)
    with agent(Path(settings.state_dir)):
        assert not fires(settings, DAY)
    assert fires(settings, DAY)  # nobody is there whose note it could be


def test_it_needs_nothing_of_the_agent() -> None:
    """An upgrade that breaks the agent must not break the watchdog."""
    script = "import sys, gpu_node.watchdog; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    agents = {"agent", "client", "service", "process", "docker_runtime", "guard", "__main__"}
    assert not {f"gpu_node.{name}" for name in agents} & set(done.stdout.split())


def test_as_a_program(settings: NodeSettings, tmp_path: Path) -> None:
    config, off = tmp_path / "node.toml", tmp_path / "off"
    config.write_text(
        'proxy_urls = ["http://10.0.0.5:8080"]\ngpu = "main"\nboot_id = "boot-0001"\n'
        f'state_dir = "{tmp_path}"\npower_off_command = ["touch", "{off}"]\n'
    )
    contact(settings, time.monotonic())
    program = [sys.executable, "-m", "gpu_node.watchdog", "--config"]
    done = subprocess.run([*program, str(config)], capture_output=True, text=True)
    assert (done.returncode, off.exists()) == (0, False)
    assert "no agent runs; this instance stops itself in" in done.stderr
    done = subprocess.run([*program, "/nonexistent"], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_what_it_notes_is_read_back(settings: NodeSettings) -> None:
    with agent(Path(settings.state_dir)):
        fires(settings, 77.0)
    noted = json.loads(Path(settings.state_dir, "watchdog.json").read_text())
    assert noted == {"boot_id": BOOT, "last": 77.0}


def test_an_instance_that_is_being_set_up_is_counted_from_its_secret(
    settings: NodeSettings, tmp_path: Path
) -> None:
    secret = tmp_path / "node.secret"
    later = settings.model_copy(update={"node_secret_file": str(secret)})
    # Up for a day, and the secret comes only now: no agent could have run until now.
    secret.write_text("hush\n")
    assert not fires(later, DAY)
    os.utime(secret, (time.time() - 600 - MARGIN - 1,) * 2)
    assert fires(later, DAY)
    os.utime(secret, (time.time() + DAY,) * 2)  # by a clock that was ahead
    assert not fires(later, DAY)
    secret.unlink()
    assert fires(later, DAY)
