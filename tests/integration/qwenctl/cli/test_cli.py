"""The command line as a user runs it: real processes, a real Valkey, one sentence for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomllib

from qwenctl.core.events import EventKind
from qwenctl.errors import ExitCode
from qwenctl.store.store import Store
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer

PROGRAM = Path(sys.executable).with_name("qwenctl")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """No setting of the machine's user reaches the program."""
    theirs = ("QWENCTL_", "XDG_", "NO_COLOR", "FORCE_COLOR")
    env = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
    return env | {
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "QWENCTL_EMBEDDED_LINGER": "1",
        "LANG": "C.UTF-8",
        **more,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *args],
            cwd=tmp_path,
            env=environment(tmp_path, **env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def config(tmp_path: Path, valkey: ValkeyServer, deployment: str) -> Path:
    """A deployment of one GPU in the file that is found by itself."""
    path = tmp_path / "qwenctl.toml"
    path.write_text(
        f'deployment = "{deployment}"\nstate_dir = "{tmp_path}/st"\nredis_url = "{valkey.url}"\n'
        "[gpu.main]\n"
    )
    return path


@pytest.fixture
def live(client: Any, deployment: str) -> Store:
    """The same deployment's store on the server's own clock, as the program has it."""
    return Store(client, deployment)


def fails(done: subprocess.CompletedProcess[str], code: ExitCode, *words: str) -> None:
    """One sentence on stderr, nothing else, and this exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


# Help and usage


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


def test_version_and_completion(run: Run) -> None:
    from qwenctl import __version__

    assert run("--version").stdout == f"qwenctl {__version__}\n"
    shown = run("--show-completion", "bash", SHELL="/bin/bash")
    assert "_QWENCTL_COMPLETE" in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from qwenctl.cli import main; main(['--help']);"
        "print(*[m for m in ('redis', 'pydantic', 'rich', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == ""


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


# Configuration


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu = [", ["not valid TOML", "qwenctl.toml"]),
        ('[gpu.main]\nidle_timeout = "soon"', ["gpu.main.idle_timeout", "'soon'"]),
        ("[gpu.main]\nprice_per_hour = 'much'", ["gpu.main.price_per_hour", "number"]),
        ("[gpu.main]\nidel_timeout = 3", ["unknown key", "'idle_timeout'"]),
        ("[gpu.Main]", ["gpu"]),
        ('[proxy]\nlisten = 5\n', ["proxy.listen"]),
        ('[[gpu.main.service]]\ncommand = "vllm"', ["command", "should be a list"]),
        ("gpu = 3", ["gpu", "should be a table"]),
        ("\xff", []),
        ("", ["no GPU is configured: add", "qwenctl init"]),
        ('redis_url = "http://x"\n[gpu.main]', ["redis_url", "http"]),
        ('state_dir = "/dev/null/x"\n[gpu.main]', ["/dev/null/x", "QWENCTL_STATE_DIR"]),
        ("[gpu.a]\n[gpu.b]", []),
    ],
)  # fmt: skip
def test_bad_config(run: Run, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "qwenctl.toml").write_text(text, encoding="latin-1")
    if text == "[gpu.a]\n[gpu.b]":
        fails(run("logs"), ExitCode.USAGE, "--gpu", "a, b")
    else:
        fails(run("status"), ExitCode.USAGE, *words)


def test_every_mistake_is_told_on_its_own_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("colour = 1\n[proxy]\nlisten = 5\n")
    done = run("config", "validate")
    assert done.returncode == ExitCode.USAGE
    assert len(done.stderr.splitlines()) == 2
    told = json.loads(run("config", "validate", "--json").stdout)
    assert (told["valid"], len(told["errors"])) == (False, 2)


def test_a_config_that_is_not_there(run: Run) -> None:
    fails(run("status", "-c", "nowhere.toml"), ExitCode.USAGE, "nowhere.toml", "qwenctl init")
    fails(run("-c", "nowhere.toml", "status"), ExitCode.USAGE, "nowhere.toml")
    fails(run("config", "path"), ExitCode.USAGE, "qwenctl init")
    fails(run("config", "validate"), ExitCode.USAGE, "no config file", "qwenctl init")


def test_an_unknown_gpu(run: Run, config: Path) -> None:
    fails(run("why", "--gpu", "other"), ExitCode.USAGE, "'other'", "main")


def test_path_validate_and_schema(run: Run, config: Path) -> None:
    assert run("config", "path").stdout.strip() == str(config)
    assert json.loads(run("config", "path", "--json").stdout) == {"file": str(config)}
    done = run("config", "validate")
    assert (done.returncode, "ok, 1 GPU: main" in done.stdout) == (0, True)
    assert "warning: gpu.main has no service" in done.stderr
    told = json.loads(run("config", "validate", "--json").stdout)
    assert (told["valid"], len(told["warnings"])) == (True, 1)
    schema = json.loads(run("config", "schema").stdout)
    assert {"gpu", "proxy", "access"} <= set(schema["properties"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[proxy]\nlisten = "8080"\n[gpu.main]', ["proxy.listen", "address:port"]),
        ('[proxy]\nlisten = "127.0.0.1:99999"\n[gpu.main]', ["proxy.listen", "address:port"]),
        ('[proxy]\nlisten = "0.0.0.0:8080"\n[gpu.main]', ["0.0.0.0", "access control is off"]),
        ('[gpu.main]\nprovider = "mars"', ["gpu.main.provider", "'mars'"]),
        ('[proxy]\nlisten = "127.0.0.1:8080"', ["no GPU is configured"]),
        ('node_secret_file = "nowhere"\n[gpu.main]', ["node_secret_file", "nowhere"]),
        ('redis_url = "foo"\n[gpu.main]', ["redis_url", "use redis://"]),
        ('[proxy]\nnode_urls = ["gpu.example.com"]\n[gpu.main]', ["node_urls", "http://"]),
        ('[proxy]\npublic_url = "gpu.example.com"\n[gpu.main]', ["public_url", "http://"]),
        ('[gpu.main.aliyun]\nendpoint = "http://127.0.0.1:18901"', ["endpoint", "host:port"]),
        (
            'gpu.a.hosts = ["a"]\n[[gpu.a.service]]\ncommand = ["a"]\n[[gpu.b.service]]\ncommand = ["b"]',
            ["gpu.a", "gpu.b", "port 7860", "this machine"],
        ),
    ],
)
def test_validate_refuses_what_serve_refuses(
    run: Run, tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "qwenctl.toml").write_text(text)
    fails(run("config", "validate"), ExitCode.USAGE, *words)
    assert not (tmp_path / "state").exists()  # it looks and writes nothing


EMPTY_PASSWORD = (
    "$argon2id$v=19$m=64,t=1,p=1$DbyXgK/Cbu3ZZzlCEukF7A$2okx/apiRI9Ubt8NTZwZVJtM2f6KDEjo3vz2f0xoZUc"
)


@pytest.mark.parametrize(
    "value",
    [
        "$argon2id$REPLACE",
        "$argon2id$v=19$m=64,t=1,p=1$7a+EHq3jXqfetWgvF7RZiw$TN1xQvdT7",
        EMPTY_PASSWORD,
    ],
)
def test_a_password_hash_that_lets_nobody_in_or_everybody(
    run: Run, tmp_path: Path, value: str
) -> None:
    """That of the examples, one that was not copied to its end, and that of the empty password."""
    text = f'[access]\nmode = "password"\npassword_hash = "{value}"\n[gpu.main]\n'
    (tmp_path / "qwenctl.toml").write_text(text)
    for command in (("config", "validate"), ("serve", "--listen", "127.0.0.1:0")):
        done = run(*command)
        fails(done, ExitCode.USAGE, "access.password_hash", "`qwenctl access hash-password`")
        assert value not in done.stderr


def test_validate_tells_of_gpus_that_no_visitor_reaches(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "qwenctl.toml"
    path.write_text('[gpu.a]\n[gpu.b]\n[gpu.c]\nhosts = ["c.example.com"]\n')
    done = run("config", "validate")
    [line] = [line for line in done.stderr.splitlines() if "hosts" in line]
    assert "gpu.a" in line
    assert "gpu.b" in line
    assert "gpu.c" not in line
    assert done.returncode == 0
    path.write_text('[gpu.a]\ntier = "speed"\n[gpu.b]\ntier = "quality"\n')
    assert "hosts" not in run("config", "validate").stderr


def test_validate_tells_several_mistakes_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text('[proxy]\nlisten = "x"\n[gpu.a]\nprovider = "mars"\n')
    assert len(run("config", "validate").stderr.splitlines()) == 2


def test_listening_to_others_needs_a_word(run: Run, tmp_path: Path, config: Path) -> None:
    fails(run("serve", "--listen", "0.0.0.0:0"), ExitCode.USAGE, "access control is off")
    fails(run("serve", "--listen", "here"), ExitCode.USAGE, "address:port")
    config.write_text('[proxy]\nlisten = "0.0.0.0:1"\nallow_anonymous = true\n[gpu.main]\n')
    assert run("config", "validate").returncode == 0
    config.write_text('[proxy]\nlisten = "[::1]:1"\n[gpu.main]\n')
    assert run("config", "validate").returncode == 0


def test_show_prints_toml_that_says_the_same(run: Run, config: Path) -> None:
    shown = tomllib.loads(run("config", "show").stdout)
    assert shown == json.loads(run("config", "show", "--json").stdout)
    assert shown["gpu"]["main"]["idle_timeout"] == 600.0


def test_init_writes_a_file_that_is_valid_and_refuses_to_overwrite(
    run: Run, tmp_path: Path
) -> None:
    done = run("init")
    path = tmp_path / "config" / "qwenctl" / "qwenctl.toml"
    assert done.returncode == 0
    assert str(path) in done.stdout
    assert "[[gpu.main.service]]" in done.stdout  # what to edit
    valid = run("config", "validate")
    assert "ok, 1 GPU: main" in valid.stdout
    assert valid.stderr == ""
    path.write_text("# mine\n")
    # With --config it is that file, before the command or after it, and no other one.
    assert run("-c", "other.toml", "init", "--force").returncode == 0
    assert run("init", "-c", "third.toml").returncode == 0
    assert (tmp_path / "other.toml").exists()
    assert (tmp_path / "third.toml").exists()
    fails(run("init"), ExitCode.USAGE, "exists", "--force")
    assert path.read_text() == "# mine\n"
    told = json.loads(run("init", "--force", "--json").stdout)
    assert told == {"file": str(path), "gpu": "main"}
    assert run("init", "--here", "--gpu", "big").returncode == 0
    assert "big" in run("config", "validate").stdout  # ./ goes first
    fails(run("init", "--provider", "mars"), ExitCode.USAGE, "mars", "local")


@pytest.mark.parametrize(
    ("provider", "missing", "instance"),
    [
        ("aliyun", {"region": "cn-hangzhou"}, "i-bp1fake"),
        ("aws", {}, "i-0123456789abcdef0"),  # boto3 may find a region elsewhere
    ],
)
def test_init_for_a_cloud_says_what_to_fill_in(
    run: Run, tmp_path: Path, provider: str, missing: dict[str, str], instance: str
) -> None:
    done = run("init", "--here", "--gpu", "big", "--provider", provider)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"qwenctl import {provider}" in done.stdout
    path = tmp_path / "qwenctl.toml"
    for key, value in {**missing, "instance_id": instance}.items():
        fails(run("config", "validate"), ExitCode.USAGE, f"gpu.big.{provider}.{key} is ")
        path.write_text(path.read_text().replace(f'{key} = ""', f'{key} = "{value}"'))
    done = run("config", "validate")
    assert (done.returncode, done.stderr) == (0, "")
    # The template that is only commented out is valid, too.
    lines = path.read_text().splitlines()
    begin = lines.index(f"# [gpu.big.{provider}.template]")
    end = lines.index("", begin)
    lines[begin:end] = [line.removeprefix("# ") for line in lines[begin:end]]
    path.write_text("\n".join(lines))
    template = tomllib.loads(path.read_text())["gpu"]["big"][provider]["template"]
    assert {"image_id", "instance_type"} <= set(template)
    assert run("config", "validate").returncode == 0


# The store


def test_redis_that_does_not_run(run: Run, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "qwenctl.toml").write_text(f'redis_url = "redis://127.0.0.1:{port}"\n[gpu.main]\n')
    fails(run("status"), ExitCode.UNAVAILABLE, f"127.0.0.1:{port}", "cannot be reached")


@pytest.mark.parametrize("login", ["", ":wr0ng-secret@", "nobody:wr0ng-secret@"])
def test_redis_with_another_password(run: Run, tmp_path: Path, login: str) -> None:
    port = free_port()
    with ValkeyServer(port=port, requirepass="r1ght-secret"):
        text = f'redis_url = "redis://{login}127.0.0.1:{port}"\n[gpu.main]\n'
        (tmp_path / "qwenctl.toml").write_text(text)
        done = run("status")
        fails(done, ExitCode.DENIED, "password")
        assert "secret" not in done.stderr
        (tmp_path / "pw").write_text("r1ght-secret\n")
        good = f'redis_url = "redis://127.0.0.1:{port}"\nredis_password_file = "{tmp_path}/pw"\n'
        (tmp_path / "qwenctl.toml").write_text(good + "[gpu.main]\n")
        assert run("status").returncode == 0


def test_the_embedded_server_is_started_at_need(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("[gpu.main]\n")
    done = run("status")
    assert done.returncode == 0, done.stderr
    assert "main's state is not known" in done.stdout
    assert (tmp_path / "state" / "qwenctl" / "valkey").is_dir()


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['redis'] = None; from qwenctl.cli import main;"
        "sys.exit(main(['status']))"
    )
    env = os.environ | {"QWENCTL_GPU__MAIN__PRICE_PER_HOUR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    fails(done, ExitCode.ERROR, "redis", "pip install 'qwenctl[proxy]'")


@pytest.mark.parametrize(
    ("provider", "module", "extra"),
    [("aws", "botocore", "aws"), ("aliyun", "aliyunsdkcore", "aliyun")],
)
def test_serve_names_a_missing_extra(
    run: Run, tmp_path: Path, provider: str, module: str, extra: str
) -> None:
    (tmp_path / "none").mkdir()
    text = f"raise ModuleNotFoundError('no {module}', name='{module}')\n"
    (tmp_path / "none" / f"{module}.py").write_text(text)
    regions = {"aws": "us-east-1", "aliyun": "cn-hangzhou"}
    (tmp_path / "qwenctl.toml").write_text(
        f'[proxy]\nlisten = "127.0.0.1:0"\n[gpu.main]\nprovider = "{provider}"\n'
        f'[gpu.main.{provider}]\nregion = "{regions[provider]}"\n'
        'instance_id = "i-0123456789abcdef0"\n'
    )
    done = run("serve", PYTHONPATH=str(tmp_path / "none"))
    fails(done, ExitCode.ERROR, f"needs the package {module}", f"pip install 'qwenctl[{extra}]'")


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


# Looking


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


# Secrets


def test_no_command_prints_a_secret(run: Run, tmp_path: Path) -> None:
    port = free_port()
    digest = "ab" * 32
    with ValkeyServer(port=port, requirepass="s3cr3t-redis"):
        (tmp_path / "qwenctl.toml").write_text(
            f'redis_url = "redis://:s3cr3t-redis@127.0.0.1:{port}/0"\n'
            'node_secret = "s3cr3t-node"\n'
            '[proxy]\npublic_url = "https://me:s3cr3t-url@gpu.example.com/?token=s3cr3t-query"\n'
            '[access]\nmode = "password"\npassword_hash = "$argon2id$v=19$m=64,t=1,p=1$'
            's3cr3thash7a+EHq3jXqfA$TN1xQvdT71j9yA/7Tps69kCTTUV1/+K8SCa8GXEGWS4"\n'
            f'[[access.keys]]\nname = "laptop"\nhash = "sha256:{digest}"\n'
            "[gpu.main]\n[[gpu.main.service]]\n"
            'command = ["vllm", "--api-key", "s3cr3t-arg", "--hf-token=s3cr3t-arg2", "--port", "1"]\n'
            'env = { PLAIN = "s3cr3t-env" }\n'
            '[[gpu.main.service]]\nname = "box"\nport = 2\n'
            '[gpu.main.service.container]\nimage = "vllm/vllm-openai:v0.11.0"\n'
            'entrypoint = ["vllm", "serve", "--api-key", "s3cr3t-arg3"]\n'
        )
        outputs = [
            run("config", "show"),
            run("config", "show", "--json"),
            run("config", "validate", "--json"),
            run("status"),
            run("why", "--json"),
            run("events", "--json"),
        ]
    for done in outputs:
        assert done.returncode == 0, done.stderr
        assert "s3cr3t" not in done.stdout + done.stderr
        assert digest not in done.stdout
    assert "--port" in outputs[0].stdout  # what is no secret is still there
    assert "laptop" in outputs[0].stdout


def test_status_prints_no_secret(run: Run, config: Path) -> None:
    done = run("status", "--json", QWENCTL_NODE_SECRET="s3cr3t")
    assert done.returncode == 0
    assert "s3cr3t" not in done.stdout


# Access


def test_hash_password_from_standard_input(run: Run) -> None:
    from argon2 import PasswordHasher

    done = run("access", "hash-password", stdin="open sesame\n")
    assert done.returncode == 0
    assert PasswordHasher().verify(done.stdout.strip(), "open sesame")
    assert done.stdout.startswith("$argon2id$")
    fails(run("access", "hash-password", stdin="\n"), ExitCode.USAGE, "empty")


def test_new_key_prints_the_hash_of_the_whole_key(run: Run, tmp_path: Path) -> None:
    import hashlib

    made = json.loads(run("access", "new-key", "laptop", "--json").stdout)
    assert re.fullmatch(r"qk_[A-Za-z0-9_-]{43}", made["key"])
    assert made["hash"] == "sha256:" + hashlib.sha256(made["key"].encode()).hexdigest()
    text = run("access", "new-key", "laptop").stdout
    toml = text[text.index("[[access.keys]]") :]
    (tmp_path / "qwenctl.toml").write_text(f"[gpu.main]\n{toml}")
    assert run("config", "validate").returncode == 0


# Serving


def test_serve_says_what_is_wrong_and_a_foreign_proxy_package_never_wins(
    run: Run, tmp_path: Path, config: Path
) -> None:
    for place in (tmp_path, tmp_path / "elsewhere"):
        (place / "proxy").mkdir(parents=True)
        (place / "proxy" / "__init__.py").write_text("raise SystemExit(99)\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--listen", f"127.0.0.1:{port}", PYTHONPATH=str(tmp_path / "elsewhere"))
    fails(done, ExitCode.USAGE, f"127.0.0.1:{port}", "in use")


def test_serve_without_a_gpu(run: Run, tmp_path: Path) -> None:
    (tmp_path / "qwenctl.toml").write_text("")
    fails(run("serve"), ExitCode.USAGE, "no GPU is configured")


def test_the_first_steps_work_as_written(run: Run, tmp_path: Path) -> None:
    """init, serve, up, open: with nothing installed but the proxy."""
    import urllib.request

    assert run("init", "--here").returncode == 0
    path = tmp_path / "qwenctl.toml"
    service, proxy = free_port(), free_port()
    path.write_text(path.read_text().replace("7860", str(service)))  # the machine's may be taken
    env = {"QWENCTL_PROXY__LISTEN": f"127.0.0.1:{proxy}"}
    serve = subprocess.Popen(
        [PROGRAM, "serve"], cwd=tmp_path, env=environment(tmp_path, **env),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert serve.stderr is not None
        while "listening" not in (line := serve.stderr.readline()):
            assert line
        done = run("up", **env)
        assert done.returncode == 0, done.stderr
        assert f"main is ready: http://127.0.0.1:{proxy} " in done.stdout
        assert "estimated" in done.stderr  # no boot was seen yet
        assert "usually" not in done.stderr
        with urllib.request.urlopen(f"http://127.0.0.1:{proxy}/", timeout=10) as page:
            assert b"It works" in page.read()
        assert run("down", **env).returncode == 0
    finally:
        serve.terminate()
        serve.communicate(timeout=30)
