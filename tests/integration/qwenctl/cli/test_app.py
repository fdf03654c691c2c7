"""`qwenctl` as a user runs it: help, wrong usage, its own mistakes, signals and pipes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwenctl import __version__
from qwenctl.errors import ExitCode
from qwenctl.lib.extras import how_to_install
from tests.integration.qwenctl.cli.program import Run, environment, fails
from tests.support.program import PROGRAM


@pytest.mark.parametrize(
    "command",
    ["init", "up", "down", "block", "unblock", "status", "why", "events", "logs", "serve", "demo",
     "config show", "config validate", "config path", "config schema",
     "access hash-password", "access new-key"],
)  # fmt: skip
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert re.search(r"Examples?:\n +\S", done.stdout), done.stdout


def test_version(run: Run) -> None:
    said = run("--version").stdout
    assert re.fullmatch(rf"qwenctl {re.escape(__version__)}\+[0-9a-f]{{8}}\n", said)


def test_completion_for_the_shell_that_asks(tmp_path: Path) -> None:
    done = subprocess.run(
        # `:` keeps bash from replacing itself, so that it is the parent that Typer looks for.
        ["bash", "-c", '"$0" --show-completion; :', PROGRAM],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert "_QWENCTL_COMPLETE" in done.stdout, done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qwenctl.cli import main; main(['--help']);"
        "print(*[m for m in ('redis', 'pydantic', 'rich', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("command", ["--help", "status"])
def test_the_cloud_commands_are_loaded_only_when_they_run(command: str) -> None:
    code = (
        f"import sys; from qwenctl.cli import main; main(['{command}']);"
        "heavy = ('qwenctl.admin', 'qwenctl.cli.cloud', 'qwenctl.clouds.aws', 'qwenctl.clouds.aliyun');"
        "print(*[m for m in sys.modules if m.startswith(heavy)])"
    )
    env = os.environ | {"QWENCTL_GPU__MAIN__PRICE_PER_HOUR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[-1] == "", done.stdout


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    done = run()
    assert done.returncode == ExitCode.USAGE
    assert "Commands:" in done.stdout + done.stderr
    # `--help` builds the commands without their options, and says the same.
    assert run("--help").stdout == run("-h").stdout == done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["frobnicate"], "frobnicate"),
        (["up", "--nope"], "--nope"),
        (["up", "--for", "soon"], "'soon'"),
        (["up", "--for", "-5m"], "-5m"),
        (["block", "--for", "1 fortnight"], "fortnight"),
        (["up", "--for", "999999h"], "too long"),
        (["events", "-n", "0"], "-n"),
        (["access", "new-key", "a b"], "'a b'"),
        (["access"], ""),
    ],
)
def test_bad_usage(run: Run, config: Path, args: list[str], word: str) -> None:
    done = run(*args)
    assert done.returncode == ExitCode.USAGE
    if args != ["access"]:
        fails(done, ExitCode.USAGE, word)


def test_a_bad_duration_says_what_a_duration_is(run: Run, config: Path) -> None:
    fails(run("up", "--for", "soon"), ExitCode.USAGE, '"90s"')


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['redis'] = None; from qwenctl.cli import main;"
        "sys.exit(main(['status']))"
    )
    env = os.environ | {"QWENCTL_GPU__MAIN__PRICE_PER_HOUR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    fails(done, ExitCode.ERROR, "redis", how_to_install("proxy"))


def test_a_mistake_of_ours_is_one_sentence_and_a_traceback_on_demand() -> None:
    code = (
        "import sys, qwenctl.config.loading as c; from qwenctl.cli import main\n"
        "def broken(*_): raise RuntimeError('boom')\n"
        "c.load_config = broken\n"
        "sys.exit(main(['status']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    fails(done, ExitCode.ERROR, "boom", "QWENCTL_DEBUG=1")
    env = os.environ | {"QWENCTL_DEBUG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["config", "show"], ["status"]])
def test_a_reader_that_has_gone_ends_it_like_any_filter(
    tmp_path: Path, config: Path, args: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [PROGRAM, *args], cwd=tmp_path, env=environment(tmp_path), stdout=writer,
            stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_ctrl_c_ends_one_that_a_script_started_in_the_background(
    tmp_path: Path, config: Path
) -> None:
    # What sh does for `command &`: SIGINT is ignored in it.
    program = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", PROGRAM, "status", "--watch"],
        cwd=tmp_path, env=environment(tmp_path), text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        assert "main's state is not known" in program.stdout.readline()
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=15) == ExitCode.INTERRUPTED
    finally:
        program.kill()


def test_colours_only_where_they_belong(run: Run, config: Path) -> None:
    assert "\x1b[" not in run("status").stdout
    assert "\x1b[" in run("status", FORCE_COLOR="1").stdout
    assert "\x1b[" not in run("status", FORCE_COLOR="1", NO_COLOR="1").stdout


def test_a_reader_that_goes_away(tmp_path: Path, config: Path) -> None:
    program = subprocess.Popen(
        [PROGRAM, "config", "schema"], cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    program.stdout.close()
    assert program.stderr is not None
    assert program.stderr.read() == ""
    program.wait(timeout=30)
