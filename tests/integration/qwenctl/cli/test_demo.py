"""`qwenctl demo`: the whole cycle, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.program import PROGRAM, inherited
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    kept = inherited("XDG_")
    # A setting of the user's own deployment, which is none of the demo's.
    kept["PATH"] = os.pathsep.join(
        place
        for place in os.environ["PATH"].split(os.pathsep)
        if not (Path(place) / "qwenctl").exists()
    )
    return kept | {"XDG_STATE_HOME": str(tmp_path), "QWENCTL_GPU__OTHER__IDLE_TIMEOUT": "1h"}


def left_behind(state: Path) -> list[str]:
    """Processes that name the state directory: proxy, machine, agent, Valkey and its keeper."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(state) in command and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(command)
    return found


def test_once_runs_the_whole_cycle(tmp_path: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        [PROGRAM, "demo", "--once"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("503", "woken by HTTP", "ready: request", "chat through the proxy", "off again"):
        assert word in done.stdout
    # The keeper of the server sees its end a moment after the demo does.
    until(lambda: left_behind(tmp_path) == [], 3, "nothing left behind")
    assert not (tmp_path / "qwenctl" / ".demo").exists()


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path, env: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [PROGRAM, "demo", "--port", port], cwd=tmp_path, env=env, capture_output=True,
            text=True, timeout=30,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert f"127.0.0.1:{port}" in done.stderr


def test_ctrl_c_stops_everything_and_a_second_demo_is_refused(
    tmp_path: Path, env: dict[str, str]
) -> None:
    program = subprocess.Popen(
        # As a script starts it with `&`: SIGINT is ignored.
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", PROGRAM, "demo"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        said = ""
        while "Ctrl-C stops everything" not in (line := program.stdout.readline()):
            assert line or program.poll() is None, program.communicate()
            said += line
        assert f"{PROGRAM} -c " in said  # it is not on PATH here
        config = tmp_path / "qwenctl" / ".demo" / "qwenctl.toml"
        second = subprocess.run(
            [PROGRAM, "demo"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30
        )
        assert second.returncode == 1
        assert "another demo of yours is running" in second.stderr
        up = subprocess.run(
            [PROGRAM, "up", "-c", str(config), "--no-wait"],
            cwd=tmp_path,
            env={k: v for k, v in env.items() if not k.startswith("QWENCTL_")},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert up.returncode == 0, up.stderr
        while "booting" not in program.stdout.readline():
            pass
        program.send_signal(signal.SIGINT)
        _, stderr = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 0, stderr
    assert "Traceback" not in stderr
    # The keeper of the server sees its end a moment after the demo does.
    until(lambda: left_behind(tmp_path) == [], 3, "nothing left behind")


def test_the_next_demo_clears_up_after_a_killed_one(tmp_path: Path, env: dict[str, str]) -> None:
    program = subprocess.Popen(
        [PROGRAM, "demo", "--once"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    while "loading" not in (line := program.stdout.readline()):
        assert line, "the demo has ended"
    program.kill()
    program.wait()
    assert left_behind(tmp_path)  # at least the instance survives its proxy
    test_once_runs_the_whole_cycle(tmp_path, env)
