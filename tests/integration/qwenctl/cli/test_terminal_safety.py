"""Strangers' text cannot reach the operator's terminal as control characters."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO, cast

import pytest

from qwenctl.cli.use.status import _gpu_lines, event_words
from qwenctl.config.gpu import GpuConfig
from qwenctl.core.events import EventKind
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Guard, Phase
from qwenctl.core.status import full_status
from qwenctl.lib.text import one_line, plain, raw
from qwenctl.protocol.messages import Hello, Report
from qwenctl.store.store import Store
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer

EVIL = "POST /\x1b[31mred\r\nsecond line\x9b"


def test_reasons_and_actors_are_made_plain(store: Store) -> None:
    store.demand("main", "request:a", 60, reason=EVIL, actor=EVIL)
    store.pin("main", "pin:a", 60, reason=EVIL, actor=EVIL)
    store.release("main", actor=EVIL, reason=EVIL)
    store.block("main", "maintenance:a", 60, reason=EVIL, actor=EVIL)
    snapshot = store.snapshot("main")
    shown = [text for lease in snapshot.blocks for text in (lease.reason, lease.actor)]
    shown += [value for event in store.events("main") for value in event.fields.values()]
    assert any("\\x1b[31mred" in text for text in shown)
    assert all(text.isprintable() for text in shown)


def test_a_node_cannot_steer_the_terminal_by_its_report(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "fine\x1b[2J\x9b"
    lock, _, _ = store.acquire("main", "proxy", 60.0)
    assert lock
    for source, to in pairwise((Phase.OFF, Phase.STARTING, Phase.BOOTING)):
        move = Move(to, "test", Guard.NONE)
        store.transition("main", lock, source, move, drain=0, idle_timeout=1)
    verdict, seq = store.hello(
        Hello(gpu="main", boot_id="boot-0001", agent_version=evil), "nonce-0000000001"
    )
    assert verdict == "ok"
    report = Report.model_validate(
        {
            "gpu": "main",
            "boot_id": "boot-0001",
            "start_seq": seq,
            "state": "failed",
            "error": evil,
            "progress": {"phase": "weights", "text": evil},
            "services": [
                {"name": "webui", "state": "failed", "port": 1, "detail": evil, "error": evil}
            ],
            "resources": {"gpus": [{"index": "0", "name": evil}], "gpu_note": evil},
        }
    )
    assert store.report(report, "nonce-0000000002", heartbeat=5.0)[0] == "ok"
    monkeypatch.setenv("NO_COLOR", "1")
    failure = Failure("service_failed", evil, 1, 0.0, instance_is_bad=False)
    shown = []
    for source, to, why in (
        (Phase.BOOTING, Phase.LOADING, None),
        (Phase.LOADING, Phase.FAILED, failure),
    ):
        move = Move(to, "test", Guard.NONE, failure=why)
        store.transition("main", lock, source, move, drain=0, idle_timeout=1)
        state = full_status(store.snapshot("main"), store.events("main"), GpuConfig())
        shown += list(_gpu_lines(state))
    shown += [event_words(event) for event in store.events("main")]
    assert any("agent fine" in line for line in shown)
    assert sum("fine" in line for line in shown) >= 8
    assert [line for line in shown if not line.isprintable()] == []


def test_one_line_is_plain() -> None:
    assert one_line("\x1b[31mred\nmore") == "\\x1b[31mred (more in `qwenctl logs`)"


# Every command that prints what others wrote, on a terminal of its own

HOSTILE = (
    "shown\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[8m\x9b31m\x9d0;title\x9c\u202egpj\u2066\r[link=file:///x]y[/link]"
    "\x1b]8;;http://evil\x1b\\\x7f"
)
STEERING = (
    "\x1b]",
    "\x1b[2J",
    "\x1b[8m",
    "\x07",
    "\x7f",
    "\x9b",
    "\x9c",
    "\x9d",
    "\u202e",
    "\u2066",
)

COMMANDS = (
    "status",
    "status --watch",
    "why",
    "events",
    "events --follow",
    "logs",
    "logs --follow",
    "doctor",
    "block --for 1h --dry-run",
    "down --dry-run",
    "up --timeout 1s",
    "unblock",
)


@pytest.fixture
def hostile(
    tmp_path: Path, valkey: ValkeyServer, deployment: str, client: Any, store: Store
) -> Path:
    """A config file; everything that the store has of its GPU tries to steer the terminal."""
    file = tmp_path / "qwenctl.toml"
    file.write_text(
        f'deployment = "{deployment}"\nredis_url = "{valkey.url}"\nstate_dir = "{tmp_path}"\n'
        "[gpu.main]\n[[gpu.main.service]]\ncommand = ['x']\n"
    )
    lock, _, _ = store.acquire("main", HOSTILE, 600.0)
    assert lock
    store.record_observation("main", lock, state="running", instance_id=HOSTILE, address=HOSTILE,
                             reason=HOSTILE, error="", machine="local")  # fmt: skip
    for source, to in pairwise((Phase.OFF, Phase.STARTING, Phase.BOOTING)):
        move = Move(to, HOSTILE, Guard.NONE)
        store.transition("main", lock, source, move, drain=0, idle_timeout=1)
        store.record_call("main", lock, to, "start", request_id=HOSTILE, error=HOSTILE, note="")
    hello = Hello(gpu="main", boot_id="boot-0001", agent_version=HOSTILE)
    _, seq = store.hello(hello, "nonce-0000000001")
    report = Report.model_validate(
        {
            "gpu": "main",
            "boot_id": "boot-0001",
            "start_seq": seq,
            "state": "loading",
            "error": HOSTILE,
            "progress": {"phase": "weights", "text": HOSTILE},
            "services": [
                {"name": HOSTILE, "state": "failed", "port": 1, "detail": HOSTILE, "error": HOSTILE}
            ],
            "resources": {"gpus": [{"index": "0", "name": HOSTILE}], "gpu_note": HOSTILE},
            "log": [HOSTILE],
        }
    )
    assert store.report(report, "nonce-0000000002", heartbeat=5.0)[0] == "ok"
    move = Move(Phase.LOADING, "hello", Guard.NONE)
    store.transition("main", lock, Phase.BOOTING, move, drain=0, idle_timeout=1)
    # As an older version, or somebody else with the store's password, has written them.
    (
        state,
        leases,
        blocks,
        info,
        *_,
    ) = store.keys("main")
    for name in (f"request:{HOSTILE}", f"{HOSTILE}:x"):
        client.zadd(leases, {name: 4e12})
        client.hset(info, name, json.dumps({"reason": HOSTILE, "actor": HOSTILE, "since": 1}))
    client.zadd(blocks, {f"maintenance:{HOSTILE}": 4e12})
    client.hset(state, mapping={"observe_error": HOSTILE, "start_note": HOSTILE,
                                "schedule_trouble": HOSTILE})  # fmt: skip
    for kind in (*map(str, EventKind), HOSTILE):
        fields = dict.fromkeys(
            ("actor", "cause", "name", "error", "note", "verb", "state"), HOSTILE
        )
        client.xadd(store.keys("main")[7], {"time": 1, "kind": kind, "v": "1", **fields})
    return file


def on_a_terminal(file: Path, command: str) -> str:
    """Run it on a pseudo terminal until it ends, or follows; return what the terminal got."""
    follows = "--follow" in command or "--watch" in command
    ours, theirs = pty.openpty()
    words = [PROGRAM, *command.split(), "--config", str(file)]
    env = {**inherited("NO_COLOR"), "TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        got, deadline = b"", time.monotonic() + 90.0
        while (left := deadline - time.monotonic()) > 0:
            if select.select([ours], [], [], left)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # the other side is closed
                    break
                got += piece
                if follows and b"shown" in got:
                    deadline = min(deadline, time.monotonic() + 1.0)
        process.kill()
    os.close(ours)
    return got.decode("utf-8", "replace")


def test_no_command_lets_strangers_steer_the_terminal(hostile: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        shown = dict(zip(COMMANDS, pool.map(lambda one: on_a_terminal(hostile, one), COMMANDS)))
    for command, text in shown.items():
        assert [one for one in STEERING if one in text] == [], (command, text)
        assert "Traceback" not in text, (command, text)
    for command in COMMANDS[:7]:
        assert "shown" in shown[command], (command, shown[command])


@pytest.mark.parametrize("command", ["status", "why", "events", "logs"])
def test_json_keeps_what_was_said_as_escapes(hostile: Path, command: str) -> None:
    words = [PROGRAM, command, "--json", "--config", str(hostile)]
    done = subprocess.run(words, env=inherited(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    documents = [done.stdout] if command in ("status", "why") else done.stdout.splitlines()
    assert any(HOSTILE in text for text in map(repr_of, documents))


def repr_of(document: str) -> str:
    """All texts of a JSON document."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from texts(one)
        elif isinstance(value, str):
            yield value

    return " ".join(texts(json.loads(document)))


def test_a_stream_lets_colours_through_and_nothing_else() -> None:
    out = io.StringIO()
    stream = plain(cast(TextIO, out))
    stream.write("\x1b[1;31mred\x1b[0m\tone\n" + HOSTILE)
    text = out.getvalue()
    assert text.startswith("\x1b[1;31mred\x1b[0m\tone\nshown\\x1b]52;c;ZXZpbA==\\x07\\x1b[2J")
    assert plain(stream) is stream
    assert raw(stream) is out
