"""`qwenctl status`, `why`, `events`, `block` and `down` without a machine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from qwenctl.core.events import EventKind
from qwenctl.errors import ExitCode
from qwenctl.store.store import Store
from tests.integration.qwenctl.cli.program import Run, environment, fails
from tests.support.program import PROGRAM


def test_status_why_and_events_of_a_fresh_gpu(run: Run, config: Path) -> None:
    data = json.loads(run("status", "--json").stdout)
    assert data["gpus"]["main"]["phase"] == "off"
    why = json.loads(run("why", "--json").stdout)
    assert why["reasons"][0]["topic"] == "state"
    assert "stays off until somebody needs it" in run("why").stdout
    assert run("events").stdout == ""
    done = run("logs")
    assert (done.returncode, done.stdout) == (0, "")


def test_what_was_done_is_seen(run: Run, config: Path, live: Store) -> None:
    live.pin("main", "pin:anna", 7200, reason="demo", actor="anna")
    assert "anna (qwenctl up): demo" in run("status").stdout
    said = run("why").stdout
    assert "kept on by anna (qwenctl up): demo" in said
    assert "qwenctl serve" in said
    [line] = run("events", "--json").stdout.splitlines()
    event = json.loads(line)
    assert (event["kind"], event["name"], event["actor"]) == ("lease", "pin:anna", "anna")
    assert "needed by anna (qwenctl up): demo" in run("events").stdout
    status = json.loads(run("status", "--json").stdout)["gpus"]["main"]
    assert status["leases"][0]["seconds_left"] == pytest.approx(7200, abs=30)


def test_of_several_gpus_all_are_shown_unless_one_is_named(
    run: Run, config: Path, live: Store, tmp_path: Path
) -> None:
    with config.open("a") as file:
        file.write("[gpu.second]\n")
    for number, name in enumerate(("main", "second", "main", "second")):
        live.pin(name, f"pin:p{number}", 7200, reason="demo", actor=f"p{number}")
        threading.Event().wait(0.01)  # events are told apart by the millisecond
    said = run("why").stdout
    assert said.count("kept on by") == 4
    assert "\n\nsecond" in said
    assert list(json.loads(run("why", "--json").stdout)["gpus"]) == ["main", "second"]
    assert json.loads(run("why", "--json", "--gpu", "second").stdout)["gpu"] == "second"

    told = [json.loads(line) for line in run("events", "--json").stdout.splitlines()]
    assert [event["gpu"] for event in told] == ["main", "second"] * 2
    lines = run("events", "-n", "3").stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["second", "main", "second"]
    assert "second" not in run("events", "--gpu", "second").stdout

    command = [PROGRAM, "events", "--follow", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            for _ in range(4):
                assert "demo" in program.stdout.readline()
            for name in ("second", "main"):
                live.block(name, "maintenance:a", 60, reason="more", actor="a")
                event = json.loads(program.stdout.readline())
                assert (event["gpu"], event["kind"]) == (name, "block")
        finally:
            program.kill()


def test_a_message_of_several_lines_stays_on_one(run: Run, config: Path, live: Store) -> None:
    live.pin("main", "pin:anna", 7200, reason="first\nsecond", actor="anna")
    for command in ("status", "why", "events"):
        said = run(command).stdout
        assert "first\\nsecond" in said


def test_block_and_unblock(run: Run, config: Path) -> None:
    assert "would block" in run("block", "--dry-run").stdout
    assert json.loads(run("status", "--json").stdout)["gpus"]["main"]["blocks"] == []
    done = run("block", "--for", "2h", "--because", "driver update")
    assert (done.returncode, done.stdout) == (0, "main is blocked for 2 h\n")
    fails(run("up"), ExitCode.BLOCKED, "driver update", "qwenctl unblock")
    fails(run("up", "--no-wait"), ExitCode.BLOCKED, "driver update")
    fails(run("up", "--dry-run"), ExitCode.BLOCKED, "driver update")
    assert "driver update" in run("why").stdout
    assert re.search(r"no longer blocked by \w+ \(qwenctl block\)", run("unblock").stdout)
    assert run("unblock").stdout == "main was not blocked\n"


def test_unblock_says_who_wakes_the_gpu_now(run: Run, config: Path, live: Store) -> None:
    def blocked() -> None:
        live.demand("main", "request:eve", 645, reason="POST /zz", actor="eve")
        run("block")

    blocked()
    said = run("unblock").stdout
    assert "main starts again for: a visitor (eve): POST /zz (10 min" in said
    assert "left); `qwenctl down` lets go of it" in said
    blocked()
    chinese = run("unblock", QWENCTL_LANG="zh").stdout
    assert re.search(
        r"因为：访客（eve）：POST /zz（还有 10 分钟?( \d+ 秒)?）；`qwenctl down`", chinese
    )
    blocked()
    [again] = json.loads(run("unblock", "--json").stdout)["needed_by"]
    assert again["lease"] == "request:eve"
    assert again["text"].startswith("a visitor (eve): POST /zz (10 min")
    assert "starts" not in run("unblock").stdout, "it was not blocked"


def test_a_restart_of_one_that_is_off_says_how_to_start_it(run: Run, config: Path) -> None:
    fails(
        run("restart", "--agent"), ExitCode.ERROR, "main is not running", "`qwenctl up` starts it"
    )


def test_down_of_one_that_is_off(run: Run, config: Path) -> None:
    done = run("down")
    assert (done.returncode, done.stdout) == (0, "main is off already\n")
    assert json.loads(run("down", "--json").stdout) == {"gpu": "main", "outcome": "already_off"}


def test_dry_runs_change_nothing(run: Run, config: Path, live: Store) -> None:
    assert "would keep main on for 2 h" in run("up", "--for", "2h", "--dry-run").stdout
    told = json.loads(run("up", "--dry-run", "--json").stdout)
    assert told["would_start"] is True
    assert "off already" in run("down", "--dry-run").stdout
    assert live.events("main") == []


def test_events_can_be_followed_until_ctrl_c(tmp_path: Path, config: Path, live: Store) -> None:
    live.note("main", EventKind.HELLO, boot_id="1")
    program = subprocess.Popen(
        [PROGRAM, "events", "--follow", "--json"], cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline())["boot_id"] == "1"
        live.note("main", EventKind.HELLO, boot_id="2")
        assert json.loads(program.stdout.readline())["boot_id"] == "2"
        program.send_signal(signal.SIGINT)
        _, stderr = program.communicate(timeout=15)
    finally:
        program.kill()
    assert program.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in stderr


def test_status_watch_prints_a_line_for_each_change(
    tmp_path: Path, config: Path, live: Store
) -> None:
    program = subprocess.Popen(
        [PROGRAM, "status", "--watch", "--json"], cwd=tmp_path, env=environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert program.stdout is not None
        assert json.loads(program.stdout.readline())["gpus"]["main"]["leases"] == []
        live.pin("main", "pin:bob", 60, reason="", actor="bob")
        assert json.loads(program.stdout.readline())["gpus"]["main"]["leases"][0]["actor"] == "bob"
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=15)
    finally:
        program.kill()
    assert program.returncode == ExitCode.INTERRUPTED


def test_people_read_chinese_where_the_environment_asks_for_it(run: Run, config: Path) -> None:
    assert "没有人需要它" in run("why", LANG="zh_CN.UTF-8").stdout
    assert "控制器" in run("status", QWENCTL_LANG="zh").stdout
    wrong = run("status", "--gpu", "nope", QWENCTL_LANG="zh")
    assert (wrong.returncode, "没有名为 'nope' 的 GPU" in wrong.stderr) == (ExitCode.USAGE, True)
    assert "nobody needs it" in run("why", LANG="zh_CN.UTF-8", LC_ALL="C").stdout
    told = [json.loads(run("why", "--json", QWENCTL_LANG=lang).stdout) for lang in ("zh", "en")]
    assert told[0]["reasons"] == told[1]["reasons"]
