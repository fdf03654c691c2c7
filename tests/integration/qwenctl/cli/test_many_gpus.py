"""Several GPUs at the command line: a line each, all at once, and names that the shell completes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from qwenctl.errors import ExitCode
from tests.integration.qwenctl.cli.program import Run, environment, fails
from tests.support.net import free_port
from tests.support.program import PROGRAM

NAMES = [f"gpu-{number:02}" for number in range(30)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Thirty GPUs, whose store is this machine's own."""
    file = tmp_path / "qwenctl.toml"
    long = "".join(f'[gpu.{name}]\nhosts = ["{name}.{"x" * 60}.example"]\n' for name in NAMES)
    file.write_text(f"[proxy]\nlisten = '127.0.0.1:{free_port()}'\n{long}")
    return file


@pytest.fixture
def two(tmp_path: Path) -> Path:
    text = "".join(
        f'[gpu.{name}]\nmax_up = "2h"\nagent = false\nlocal.boot_seconds = 0\n'
        f"local.stop_seconds = 0\n[[gpu.{name}.prewarm]]\n"
        f'name = "morning-{name}"\ncron = "0 9 * * *"\nduration = "3h"\n'
        for name in ("one", "two")
    )
    file = tmp_path / "qwenctl.toml"
    file.write_text(text)
    return file


def test_each_gpu_has_a_line_and_by_its_name_the_long_form(run: Run, many: Path) -> None:
    done = run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == NAMES
    long = run("status", "gpu-03").stdout
    assert long == run("status", "--gpu", "gpu-03").stdout
    assert long.startswith("gpu-03's state is not known")
    assert "controller" in long
    assert set(json.loads(run("status", "--json").stdout)["gpus"]) == set(NAMES)
    done = run("status", "gpu-03", "--gpu", "gpu-04")
    fails(done, ExitCode.USAGE, "give the GPU once")


@pytest.mark.parametrize("command", ["status --watch", "status gpu-03 --watch"])
def test_watch_fits_a_small_terminal(many: Path, tmp_path: Path, command: str) -> None:
    theirs, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**environment(tmp_path), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [PROGRAM, *command.split()], cwd=tmp_path, env=env, stdin=ours, stdout=ours, stderr=ours
    )
    os.close(ours)
    got, end = b"", time.monotonic() + 60
    try:
        while time.monotonic() < end and got.count(b"gpu-03") < 2:  # two frames
            if select.select([theirs], [], [], 1.0)[0]:
                got += os.read(theirs, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == ExitCode.INTERRUPTED
    finally:
        process.kill()
        os.close(theirs)
    text = got.decode("utf-8", "replace")
    frames = re.split(r"(?:\x1b\[2K|\x1b\[1A|\r)+(?=\S|\x1b\[1m)", text)
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in frames]
    lines = [frame.splitlines() for frame in frames if "gpu-03" in frame]
    assert lines
    assert max(len(frame) for frame in lines) <= 24
    assert max(len(line) for frame in lines for line in frame) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("up --gpu o", ["one"]),
        ("status t", ["two"]),
        ("why -g ", ["one", "two"]),
        ("prewarm remove morning-o", ["morning-one"]),
        ("prewarm run --gpu two ", ["morning-two"]),
        ("restart w", []),
    ],
)
def test_the_shell_completes_names(
    two: Path, tmp_path: Path, shell: str, words: str, expected: list[str]
) -> None:
    line = f"qwenctl {words}"
    env = environment(tmp_path) | {
        "_QWENCTL_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = subprocess.run(
        [PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    found = re.findall(r"\b(?:one|two|morning-\w+|webui)\b", done.stdout)
    assert list(dict.fromkeys(found)) == expected


def test_a_broken_file_completes_nothing(tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("[gpu")
    line = "qwenctl up --gpu "
    env = environment(tmp_path) | {
        "_QWENCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": "3",
    }
    done = subprocess.run([PROGRAM], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_all_go_off_at_once(run: Run, two: Path) -> None:
    for name in ("one", "two"):
        assert run("up", "--gpu", name, "--no-wait").returncode == 0
    done = run("down", "--all", "--now")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["one is off", "two is off"]
    chinese = run("down", "--all", QWENCTL_LANG="zh").stdout.splitlines()
    assert sorted(chinese) == ["one 已经关闭", "two 已经关闭"]
    told = json.loads(run("down", "--all", "--json").stdout)["gpus"]
    assert told == {"one": {"outcome": "already_off"}, "two": {"outcome": "already_off"}}
    fails(run("down", "--all", "--gpu", "one"), ExitCode.USAGE, "--all is every GPU")
    would = json.loads(run("down", "--all", "--dry-run", "--json").stdout)["gpus"]
    assert [would[name]["dropped"] for name in ("one", "two")] == [[], []]


def test_one_that_cannot_be_asked_keeps_no_other_on(run: Run, two: Path) -> None:
    two.write_text(
        two.read_text()
        + '[gpu.far]\nprovider = "aws"\n[gpu.far.aws]\nregion = "eu-west-1"\n'
        + f'instance_id = "i-0123456789abcdef0"\nendpoint_url = "http://127.0.0.1:{free_port()}"\n'
    )
    assert run("up", "--gpu", "one", "--no-wait").returncode == 0
    key = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    done = run("down", "--all", "--timeout", "30s", "--json", **key)
    told = json.loads(done.stdout)["gpus"]
    assert told["one"]["outcome"] == "off"
    assert told["far"]["outcome"] == "failed"
    assert done.returncode == told["far"]["exit_code"] != 0


def test_up_is_capped_by_the_settings(run: Run, two: Path) -> None:
    done = run("up", "--gpu", "one", "--for", "5h", "--dry-run", "--json")
    assert json.loads(done.stdout)["lease_seconds"] == 7200
    assert "gpu.one.max_up allows at most 2 h" in done.stderr
    done = run("up", "--gpu", "one", "--for", "1h", "--dry-run", "--json")
    assert (json.loads(done.stdout)["lease_seconds"], done.stderr) == (3600, "")


@pytest.mark.parametrize("command", ["config schema", "permissions aws", "prewarm crontab"])
def test_what_prints_json_takes_the_option(run: Run, two: Path, command: str) -> None:
    two.write_text(
        two.read_text()
        + '[gpu.far]\nprovider = "aws"\n[gpu.far.aws]\nregion = "eu-west-1"\n'
        + 'instance_id = "i-0123456789abcdef0"\n'
    )
    done = run(*command.split(), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
