"""Others who hold the agent's lock, or have prepared its directory."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_node.__main__ import _prepare
from gpu_node.selfstop.agent_lock import LOCK, agent_runs, lock_holder, take_lock
from gpu_node.selfstop.watchdog import MARGIN, watch
from gpu_node.settings import STATE_FILES, NodeSettings
from qwenctl.errors import ConfigError
from tests.support.other_user import needs_root, nobody

_HOLD = """
import fcntl, os, sys, time
os.setgroups([]), os.setgid(65534), os.setuid(65534)
fcntl.flock(lock := open(0, closefd=False), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def squatter(file: Path) -> Iterator[int]:
    """A process of another user that has locked the file, which it may read."""
    with file.open() as readable:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD], stdin=readable, stdout=subprocess.PIPE
        )
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(
        proxy_urls=("http://10.0.0.5:8080",),
        gpu="main",
        boot_id="boot-0001",
        state_dir=str(tmp_path / "state"),
        log_dir=str(tmp_path / "log"),
        dead_man=600.0,
    )


@pytest.fixture
def state(settings: NodeSettings) -> Path:
    state = Path(settings.state_dir)
    state.mkdir(mode=0o755)
    return state


def fires(settings: NodeSettings, now: float) -> bool:
    stops: list[Any] = []
    watch(settings, stop=stops.append, clock=lambda: now, sleep=lambda _: None)
    return bool(stops)


def test_nobody_else_can_open_the_lock(settings: NodeSettings) -> None:
    before = os.umask(0o022)
    try:
        with _prepare(settings):
            state = Path(settings.state_dir)
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
            assert stat.S_IMODE((state / LOCK).stat().st_mode) == 0o600
    finally:
        os.umask(before)


@needs_root
def test_another_users_lock_does_not_keep_the_agent_away(
    settings: NodeSettings, state: Path, caplog: Any
) -> None:
    (state / LOCK).touch(mode=0o644)
    with squatter(state / LOCK) as pid:
        assert not agent_runs(state)
        with _prepare(settings):
            assert agent_runs(state)
            assert (holder := lock_holder(state))
            assert holder.pid == os.getpid()
            with pytest.raises(ConfigError, match=f"another agent runs.*process {os.getpid()}"):
                take_lock(state)
    assert f"process {pid} of the user nobody held" in caplog.text


@needs_root
def test_who_has_an_earlier_versions_lock_open_cannot_take_it_later(state: Path) -> None:
    (state / LOCK).touch(mode=0o644)
    with (state / LOCK).open() as opened_before:
        with take_lock(state):
            pass
        fcntl.flock(opened_before, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert lock_holder(state) is None
        take_lock(state).close()


@needs_root
def test_the_watchdog_counts_while_another_user_holds_the_lock(
    settings: NodeSettings, state: Path, caplog: Any
) -> None:
    (state / LOCK).touch(mode=0o644)
    with squatter(state / LOCK) as pid:
        assert not fires(settings, 1000.0)
        assert f"process {pid} of the user nobody holds" in caplog.text
        assert "is no agent" in caplog.text
        assert fires(settings, 1000.0 + 600 + MARGIN)


@needs_root
def test_a_directory_of_another_user_is_refused(settings: NodeSettings, state: Path) -> None:
    os.chown(state, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to the user nobody"):
        _prepare(settings)


@pytest.mark.parametrize("kind", ["pipe", "link", "file"])
@pytest.mark.parametrize("name", STATE_FILES)
@needs_root
def test_what_others_have_put_into_an_open_directory_is_not_used(
    settings: NodeSettings, state: Path, tmp_path: Path, kind: str, name: str
) -> None:
    state.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with nobody(tmp_path):
        if kind == "pipe":
            os.mkfifo(state / name)
        elif kind == "link":
            (state / name).symlink_to(victim)
        else:
            (state / name).write_text("{}")
    assert not fires(settings, 1000.0)  # nor does the watchdog wait or follow
    with _prepare(settings):
        assert name == LOCK or not os.path.lexists(state / name) or name == "watchdog.json"
    assert victim.read_text() == "precious"


def test_an_agent_that_begins_waits_for_whoever_looks(state: Path) -> None:
    import threading

    with (state / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        take_lock(state).close()


@needs_root
def test_status_tells_a_held_lock_from_an_agent(
    settings: NodeSettings, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpu_node.setup.commands import main

    config = tmp_path / "node.toml"
    config.write_text(
        'proxy_urls = ["http://10.0.0.5:8080"]\ngpu = "main"\nboot_id = "boot-0001"\n'
        f'state_dir = "{state}"\nlog_dir = "{tmp_path}"\n'
    )
    command = ["status", "--config", str(config)]
    (state / LOCK).touch(mode=0o644)
    with squatter(state / LOCK) as pid:
        assert main(command) == 1
        said = capsys.readouterr().out
        assert f"not known to run: process {pid} of the user nobody holds {LOCK}" in said
    with take_lock(state):
        assert main(command) == 1
        assert "no agent reports" in capsys.readouterr().out
    assert main(command) == 1
    assert "not running" in capsys.readouterr().out
