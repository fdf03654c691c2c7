from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpu_node.__main__ import _prepare
from gpu_node.machine.nvidia import GpuWatch, Reading
from gpu_node.selfstop.deadman import EXIT_POWER_OFF, DeadMan
from gpu_node.selfstop.watchdog import MARGIN, agent_runs, look, main, watch
from gpu_node.settings import NodeSettings, save_last_good
from qwenctl.errors import ConfigError
from qwenctl.protocol.messages import GpuFigures, Spec
from tests.support.other_user import needs_root, nobody

BOOT = "boot-0001"
DAY = 86400.0


class Stop:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _: Sequence[str]) -> None:
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
def test_without_a_record_it_counts_from_its_first_look(
    settings: NodeSettings, garbage: str | None
) -> None:
    """An instance that has been up for long when the agent is installed is not stopped at once."""
    for name in ("deadman.json", "spec.json", "watchdog.json"):
        if garbage is not None:
            Path(settings.state_dir, name).write_text(garbage)
    assert not fires(settings, DAY)
    assert not fires(settings, DAY + 600 + MARGIN - 1)
    assert fires(settings, DAY + 600 + MARGIN)


def test_the_record_of_another_boot_or_of_the_future_counts_as_none(settings: NodeSettings) -> None:
    contact(settings, 400.0, boot="boot-0000")
    assert not fires(settings, 60)
    contact(settings, 9999.0)
    assert not fires(settings, 60 + 600 + MARGIN - 1)
    assert fires(settings, 60 + 600 + MARGIN)


def test_each_boot_has_a_first_look_of_its_own(settings: NodeSettings) -> None:
    assert not fires(settings, DAY)
    again = settings.model_copy(update={"boot_id": "boot-0002"})
    assert not fires(again, DAY + 3600)
    assert fires(again, DAY + 3600 + 600 + MARGIN)


@pytest.mark.parametrize("age", [None, -400 * DAY, 0.0, 400 * DAY])
def test_the_node_secret_means_nothing(
    settings: NodeSettings, tmp_path: Path, age: float | None
) -> None:
    """Neither that there is none yet, nor its date, which a copy or a wrong clock may have set."""
    secret = tmp_path / "node.secret"
    given = settings.model_copy(update={"node_secret_file": str(secret)})
    if age is not None:
        secret.write_text("hush\n")
        os.utime(secret, (time.time() - age,) * 2)
    assert not fires(given, DAY)
    assert not fires(given, DAY + 600 + MARGIN - 1)
    assert fires(given, DAY + 600 + MARGIN)


def test_where_nothing_can_be_noted_it_counts_from_the_boot(
    settings: NodeSettings, tmp_path: Path
) -> None:
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
    monkeypatch.setattr("gpu_node.selfstop.watchdog.os.statvfs", lambda _: read_only)
    with agent(Path(settings.state_dir)):
        assert not fires(settings, DAY)
    assert fires(settings, DAY)  # nobody is there whose note it could be


def test_it_needs_nothing_of_the_agent() -> None:
    """An upgrade that breaks the agent must not break the watchdog."""
    script = "import sys, gpu_node.selfstop.watchdog; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    parts = ("supervisor", "process", "docker", "orphans")
    agents = {f"gpu_node.services.{name}" for name in parts}
    agents |= {f"gpu_node.{name}" for name in ("__main__", "agent", "client", "conversation")}
    loaded = set(done.stdout.split())
    assert "gpu_node.selfstop.watchdog" in loaded
    assert not agents & loaded


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
    elsewhere = {**os.environ, "QWENCTL_NODE__STATE_DIR": str(tmp_path / "nowhere")}
    program.append("/nonexistent")
    done = subprocess.run(program, capture_output=True, text=True, env=elsewhere)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_what_it_notes_is_read_back(settings: NodeSettings) -> None:
    with agent(Path(settings.state_dir)):
        fires(settings, 77.0)
    noted = json.loads(Path(settings.state_dir, "watchdog.json").read_text())
    assert noted == {"boot_id": BOOT, "last": 77.0}


@needs_root
@pytest.mark.parametrize("name", ["agent.lock", "deadman.json", "spec.json", "watchdog.json"])
def test_another_user_stops_nothing(
    settings: NodeSettings, tmp_path: Path, caplog: Any, name: str
) -> None:
    """Who may not read what the agent writes cannot tell whether there is one."""
    (tmp_path / name).touch()
    (tmp_path / name).chmod(0o640)
    stop = Stop()
    with nobody(tmp_path):
        for now in (DAY, 2 * DAY):
            code = watch(
                settings, stop=stop, gpus=gpus(), clock=lambda now=now: now, sleep=lambda _: None
            )
            assert (code, stop.calls) == (2, 0)
        assert name != "agent.lock" or agent_runs(tmp_path)
    assert f"cannot read {tmp_path / name}: run it as root or as the agent's user" in caplog.text


@needs_root
def test_another_user_may_not_even_see_the_directory(
    settings: NodeSettings, tmp_path: Path
) -> None:
    inner = tmp_path / "state"
    inner.mkdir()
    (inner / "deadman.json").touch()
    given = settings.model_copy(update={"state_dir": str(inner)})
    stop = Stop()
    inner.chmod(0o700)
    with nobody(tmp_path):
        code = watch(given, stop=stop, gpus=gpus(), clock=lambda: DAY, sleep=lambda _: None)
        assert agent_runs(inner)
    assert (code, stop.calls) == (2, 0)


def test_a_look_does_not_hold_up_an_agent_that_starts(settings: NodeSettings) -> None:
    """Whoever looks holds the agent's lock for a moment; another agent holds it for good."""
    given = settings.model_copy(update={"log_dir": settings.state_dir})
    with Path(settings.state_dir, "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        with _prepare(given), pytest.raises(ConfigError, match="another agent runs"):
            _prepare(given)


# ---------------------------------------------------------------- settings that cannot be used


@pytest.fixture
def overdue(settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings' file with a mistake, on an instance of which nobody has been in charge for long."""
    monkeypatch.setattr("gpu_node.selfstop.watchdog.MARGIN", 0.0)
    monkeypatch.setattr("gpu_node.selfstop.busy.PAUSE", 0.0)
    kernels = settings.model_copy(update={"boot_id": ""})
    record = {"boot_id": kernels.this_boot(), "last": 0.0}
    (tmp_path / "deadman.json").write_text(json.dumps(record))
    config = tmp_path / "node.toml"
    config.write_text(f'gpu = "main"\nwrong = 1\nstate_dir = "{tmp_path}"\n')
    return config


def test_with_settings_that_cannot_be_used_the_last_good_ones_hold(
    settings: NodeSettings, tmp_path: Path, overdue: Path, caplog: Any
) -> None:
    off = tmp_path / "off"
    good = settings.model_copy(
        update={"dead_man": 0.1, "power_off_command": ("touch", str(off)), "boot_id": ""}
    )
    save_last_good(good)
    assert main(["--config", str(overdue)]) == EXIT_POWER_OFF
    assert off.exists()
    assert "wrong: unknown key" in caplog.text
    # So they do if the file is no TOML at all.
    off.unlink()
    overdue.write_text(f'state_dir = "{tmp_path}"\ngpu = \n')
    assert main(["--config", str(overdue)]) == EXIT_POWER_OFF
    assert off.exists()


def test_they_hold_for_the_limit_too(settings: NodeSettings, overdue: Path, caplog: Any) -> None:
    save_last_good(settings.model_copy(update={"dead_man": 1e9}))
    assert main(["--config", str(overdue)]) == 2
    assert "no agent runs; this instance stops itself in" in caplog.text


def test_without_them_the_exit_code_says_it(overdue: Path) -> None:
    (overdue.parent / "spec.json").write_text(
        Spec(version="1", services=(), dead_man=0.1).model_dump_json()
    )
    assert main(["--config", str(overdue)]) == EXIT_POWER_OFF


def test_a_place_where_no_agent_was_is_left_alone(overdue: Path, tmp_path: Path) -> None:
    overdue.write_text(f'state_dir = "{tmp_path / "nowhere"}"\n')
    assert main(["--config", str(overdue)]) == 2
