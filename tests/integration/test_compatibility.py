"""What version 0.1.0 wrote is read: its keys in the store, its node messages, its config files.

`tests/fixtures/before/record.py` has recorded them with that version. Where the history of the
repository is there, its real agent and its real proxy run as well, each with the other of today.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import requests

from qwenctl.config.gpu import GpuConfig
from qwenctl.config.loading import load_config
from qwenctl.core.explain import explain
from qwenctl.core.phase import Phase
from qwenctl.core.status import full_status, page_status
from qwenctl.protocol.messages import HELLO_PATH, Answer, Hello, Report
from qwenctl.protocol.signing import check_answer, check_message
from qwenctl.store.store import Store
from tests.integration.proxy.running import RunningProxy, gpu
from tests.simulation.life import IDLE, Life
from tests.simulation.puppets import GPU
from tests.support.old_version import unpacked
from tests.support.paths import ROOT
from tests.support.valkey_server import ValkeyServer
from tests.support.virtual_time import VirtualClock

BEFORE = "49f2045"
RECORDED = ROOT / "tests" / "fixtures" / "before"


def recorded(name: str) -> Any:
    return json.loads((RECORDED / f"{name}.json").read_text())


STORES = recorded("store")
MESSAGES = recorded("messages")
CONFIGS = recorded("configs")


def assert_holds(new: Any, old: Any, place: str = "") -> None:
    """What was there is there; keys may have been added."""
    if isinstance(old, dict):
        assert isinstance(new, dict), place
        for key, value in old.items():
            assert key in new, f"{place}.{key} is missing"
            assert_holds(new[key], value, f"{place}.{key}")
    elif isinstance(old, list):
        assert isinstance(new, list), place
        assert len(new) == len(old), place
        for number, (one, other) in enumerate(zip(new, old, strict=True)):
            assert_holds(one, other, f"{place}[{number}]")
    else:
        assert new == old, place


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


# The store


def load(client: redis.Redis, keys: dict[str, Any]) -> None:
    for key, (kind, value) in keys.items():
        if kind == "hash":
            client.hset(key, mapping=value)
        elif kind == "zset":
            client.zadd(key, {member: float(score) for member, score in value})
        elif kind == "stream":
            for entry, fields in value:
                client.xadd(key, fields, id=entry)
        elif kind == "list":
            client.rpush(key, *value)
        elif kind == "set":
            client.sadd(key, *value)
        else:
            client.set(key, value)


@pytest.fixture(params=STORES)
def old_store(request: pytest.FixtureRequest) -> Iterator[tuple[str, Store, VirtualClock]]:
    """A store with what the old version wrote, at the time it had then."""
    clock = VirtualClock()
    clock.advance(STORES[request.param]["now"] - clock())
    with ValkeyServer() as server, server.client() as client:
        load(client, STORES[request.param]["keys"])
        yield request.param, Store(client, "before", now=clock), clock


def test_an_old_store_says_the_same(old_store: tuple[str, Store, VirtualClock]) -> None:
    name, store, _ = old_store
    said, now, events = STORES[name]["said"], store.snapshot(GPU), store.events(GPU, 1000)
    config = GpuConfig(idle_timeout=IDLE)
    assert now.phase.value == said["phase"]
    assert [[x.name, x.kind, x.is_work, x.expiry, x.reason, x.actor] for x in now.leases] == said[
        "leases"
    ]
    assert [
        [x.name, x.kind, x.expiry if x.expiry < 1e12 else "inf", x.reason, x.actor]
        for x in now.blocks
    ] == said["blocks"]
    assert [[e.id, e.kind, dict(e.fields)] for e in events] == said["events"]
    assert [[r.topic, r.text] for r in explain(now, events)] == said["why"]
    assert store.log_lines(GPU) == said["log"]
    assert_holds(plain(full_status(now, events, config)), said["status"])
    assert_holds(plain(page_status(now, events, config, may_wake=True)), said["page"])


def test_a_life_goes_on_in_an_old_store(old_store: tuple[str, Store, VirtualClock]) -> None:
    """Whatever state it was left in, it can be put to sleep and woken."""
    _, store, clock = old_store
    for name in [block.name for block in store.snapshot(GPU).blocks]:
        store.unblock(GPU, name, actor="ada")
    life = Life(store, clock)
    life.cloud.boots = 100  # each boot has an id of its own
    store.release(GPU, actor="ada", force_stop=True)
    life.run(2 * life.gpu.timing.boot, speaks=False)
    assert life.phase() is Phase.OFF
    life.run(60, wanted=True)
    assert life.phase() is Phase.READY
    assert life.now.start_seq > 0


# Messages and config files


@pytest.mark.parametrize("message", MESSAGES["messages"], ids=["hello", "report"])
def test_an_old_agents_message_is_accepted(message: dict[str, Any]) -> None:
    body = message["body"].encode()
    check_message(
        MESSAGES["secret"], "POST", message["path"], body, message["headers"], now=MESSAGES["now"]
    )
    model = Hello if message["path"] == HELLO_PATH else Report
    parsed = model.model_validate_json(body)
    assert_holds(parsed.model_dump(mode="json"), message["values"])


@pytest.mark.parametrize("name", CONFIGS["configs"])
def test_an_old_config_file_means_the_same(name: str, tmp_path: Path) -> None:
    old = CONFIGS["configs"][name]
    file = tmp_path / "qwenctl.toml"
    file.write_text(old["text"])
    config = load_config(str(file), env={})
    new = json.loads(config.model_dump_json())
    for gpu_name, table in config.gpu.items():
        # The old version wrote down the defaults of clouds that a GPU does not use as well.
        for cloud in ("aliyun", "aws", "local"):
            settings = table.settings_of(cloud).model_dump_json()
            new["gpu"][gpu_name][cloud] = json.loads(settings)
    assert_holds(new, old["values"])
    for gpu_name, table in config.gpu.items():
        assert_holds(table.spec.model_dump(mode="json"), old["specs"][gpu_name])
        answer = old["answers"][gpu_name]
        body = answer["body"].encode()
        check_answer(MESSAGES["secret"], CONFIGS["nonce"], 200, body, answer["headers"])
        # An old agent reads the keys that it knows, and finds the same.
        told = Answer(server_time=MESSAGES["now"], start_seq=1, spec=table.spec)
        assert_holds(json.loads(told.model_dump_json()), json.loads(body))


# The real programs


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old version's source."""
    return unpacked(BEFORE, tmp_path_factory.mktemp("old"))


@contextlib.contextmanager
def one_of_each(folder: Path, proxy: Path, agent: Path) -> Iterator[RunningProxy]:
    """A proxy and an agent, each with the code of its folder."""
    # The local provider starts `python -m gpu_node`: this one goes on as the agent of the folder.
    program = folder / "bin" / "gpu_node"
    program.mkdir(parents=True)
    (program / "__init__.py").touch()
    (program / "__main__.py").write_text(
        "import os, sys\n"
        f"os.environ['PYTHONPATH'] = {str(agent)!r}\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'gpu_node', *sys.argv[1:]])\n"
    )
    env = {"PYTHONPATH": f"{program.parent}:{proxy}"}
    settings = {"main": gpu(preset="generic")}
    running = RunningProxy(folder / "proxy", source=proxy, env=env, gpu=settings)
    try:
        yield running
    finally:
        running.close()


def agents(proxy: RunningProxy) -> set[str]:
    """Where the code of the agents comes from that this proxy's instances run."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            state = environment.get("QWENCTL_NODE__STATE_DIR", "")
            if state.startswith(str(proxy.directory)) and "gpu_node" in process.cmdline():
                found.add(environment["PYTHONPATH"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("which", ["old-agent", "old-proxy"])
def test_one_old_and_one_new(old: Path, tmp_path: Path, which: str) -> None:
    """A request wakes the GPU and is answered, which takes hello, spec and reports."""
    proxy, agent = (ROOT, old) if which == "old-agent" else (old, ROOT)
    with one_of_each(tmp_path, proxy, agent) as running:
        assert requests.post(running.url("/x"), json={}, timeout=60).status_code == 200
        assert running.snapshot().phase is Phase.READY
        assert {"hello", "node"} <= {event.kind for event in running.store.events("main", 100)}
        assert agents(running) == {str(agent)}
        assert "Traceback" not in running.log
