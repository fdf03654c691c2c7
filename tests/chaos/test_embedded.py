"""The embedded Valkey: one server however many start it, none when nobody needs it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.deployment import ROOT, processes_of

CLIENT = """
import sys, time
from pathlib import Path
from qwenctl.store.embedded import ensure, socket_path
import socket
state = Path(sys.argv[1])
ensure(state)
with socket.socket(socket.AF_UNIX) as server:
    server.connect(str(socket_path(state)))
    server.sendall(b"INCR started\\r\\n")
    print(server.recv(64).decode().strip(), flush=True)
    sys.stdin.read()
"""

COUNTER = """
import random, sys, time
from pathlib import Path
import redis
from qwenctl.store.embedded import pool
seed, state = int(sys.argv[1]), Path(sys.argv[2])
dice = random.Random(seed)
count, servers = 0, set()
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    client = redis.Redis(connection_pool=pool(state))
    assert client.incr(f"c{seed}") == count + 1, "an acknowledged write was lost"
    count += 1
    servers.add(client.info("server")["run_id"])
    client.connection_pool.disconnect()
    time.sleep(dice.uniform(0.1, 0.5))
print(count, len(servers))
"""


def client(state: Path, linger: float = 2.0) -> subprocess.Popen[str]:
    """A process that uses the server until its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env={**os.environ, "QWENCTL_EMBEDDED_LINGER": str(linger)},
    )


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leave(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    for process in processes_of(tmp_path):
        process.kill()


def servers(state: Path) -> list[psutil.Process]:
    return [p for p in processes_of(state) if "valkey-server" in p.name()]


def keepers(state: Path) -> list[psutil.Process]:
    return [p for p in processes_of(state) if "qwenctl.store.embedded" in p.cmdline()]


def test_many_start_it_at_once_and_it_goes_with_the_last(state: Path) -> None:
    clients = [client(state) for _ in range(20)]
    numbers = sorted(int(answer(each).removeprefix(":")) for each in clients)
    assert numbers == list(range(1, 21))
    assert (len(servers(state)), len(keepers(state))) == (1, 1)
    (server,), (keeper,) = servers(state), keepers(state)
    for each in clients[1:]:
        leave(each)
    _, alive = psutil.wait_procs([server], timeout=3.5)
    assert alive, "it went although somebody still uses it"
    leave(clients[0])
    _, alive = psutil.wait_procs([server, keeper], timeout=8)
    assert not alive
    assert not list(processes_of(state))

    late = client(state)
    assert answer(late) == ":21"  # what was written is still there
    leave(late)


def test_kill_9_of_the_keeper_leaves_no_server(state: Path) -> None:
    first = client(state)
    assert answer(first) == ":1"
    (server,), (keeper,) = servers(state), keepers(state)
    keeper.kill()
    _, alive = psutil.wait_procs([server], timeout=5)
    assert not alive
    second = client(state)
    assert answer(second) == ":2"
    leave(first)
    leave(second)


@pytest.mark.slow
def test_clients_that_come_just_when_it_goes(state: Path) -> None:
    """It lingers for a moment only, so that clients often come while it is ending."""
    env = {**os.environ, "QWENCTL_EMBEDDED_LINGER": "0.2"}
    seed = random.randrange(1000)
    counters = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(seed + number), str(state), "15"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for counter in counters:
        out, errors = counter.communicate(timeout=40)
        assert counter.returncode == 0, (seed, errors[-1500:])
        count, lives = map(int, out.split())
        assert count > 20
        assert lives > 5
    _, alive = psutil.wait_procs(list(processes_of(state)), timeout=8)
    assert not alive
