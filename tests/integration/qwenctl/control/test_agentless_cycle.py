"""GPUs without an agent, in real processes: a WebUI that starts with its instance, proxies that ask
it, and nobody who reports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests

from qwenctl.core.phase import Phase
from qwenctl.protocol.messages import HELLO_PATH, Hello
from qwenctl.protocol.signing import sign_message
from tests.support.deployment import WEBUI, Deployment
from tests.support.fake_ecs import Cloud, FakeEcs
from tests.support.fake_ecs.client import INSTANCE
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer

Deploy = Callable[..., Deployment]

LONG = 60.0
_numbers = count(1)

# The instance's WebUI, as systemd would run it; while the file ``down`` exists, it does not come up.
_UNIT = 'while [ -e "$1" ]; do sleep 0.1; done; shift; exec "$@"'


@pytest.fixture
def deploy(tmp_path: Path, valkey: ValkeyServer) -> Iterator[Deploy]:
    """Make a deployment whose GPU has no agent; ``gpu`` are changes to its table."""
    made: list[Deployment] = []

    def make(*, gpu: dict[str, Any] | None = None, **options: Any) -> Deployment:
        number = next(_numbers)
        options = {"redis_url": valkey.url, "name": f"agentless-{number}", **options}
        deployment = Deployment(
            tmp_path / f"d{number}", gpus={"main": {"agent": False, **(gpu or {})}}, **options
        )
        made.append(deployment)
        return deployment

    yield make
    for deployment in made:
        deployment.close()


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    """While this file exists, no WebUI comes up."""
    return tmp_path / "down"


def unit(switch: Path, port: int, journal: Path) -> list[str]:
    program = [sys.executable, WEBUI, str(port), "--journal", str(journal)]
    return ["/bin/sh", "-c", _UNIT, "webui", str(switch), *program]


def switched(deployment: Deployment, switch: Path) -> Deployment:
    """Have the deployment's WebUI depend on the switch."""
    text = deployment.config_file.read_text()
    gpu = deployment.config.gpu["main"]
    old = json.dumps(list(gpu.service[0].command))
    new = json.dumps(unit(switch, gpu.port, deployment.directory / "journal-main.jsonl"))
    assert old in text
    deployment.config_file.write_text(text.replace(old, new))
    return deployment


def kill_webui(deployment: Deployment) -> None:
    pid = requests.get(node(deployment) + "/pid", timeout=10).json()["pid"]
    os.kill(pid, signal.SIGKILL)


def node(deployment: Deployment) -> str:
    return f"http://127.0.0.1:{deployment.config.gpu['main'].port}"


def transitions(deployment: Deployment, after: str = "0") -> list[tuple[str, str]]:
    return [
        (event.fields["to"], event.fields["cause"])
        for event in deployment.store.events("main", 1000, after=after)
        if event.kind == "transition"
    ]


def cli(deployment: Deployment, *args: str) -> subprocess.CompletedProcess[str]:
    env = inherited()
    done = subprocess.run(
        [PROGRAM, *args, "--config", str(deployment.config_file)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


# The main job


def test_a_request_wakes_it_and_idleness_stops_it(deploy: Deploy) -> None:
    deployment = deploy().start()
    [proxy] = deployment.proxies
    answer = proxy.post(timeout=LONG)  # held until it is ready
    assert answer.status_code == 200, deployment.history()
    deployment.wait_phase(Phase.OFF, timeout=LONG)
    instance = deployment.instance()
    instance.assert_alternating()
    instance.assert_nothing_cut()
    assert (len(instance.starts), len(instance.stops)) == (1, 1)
    assert transitions(deployment) == [
        ("starting", "demand"),
        ("booting", "running"),
        ("loading", "probing"),
        ("ready", "ready"),
        ("draining", "idle"),
        ("stopping", "idle"),
        ("off", "stopped"),
    ]
    assert not (instance._directory / "logs" / "agent.log").exists()  # none ran


def test_requests_under_way_keep_it_on(deploy: Deploy) -> None:
    deployment = deploy(gpu={"idle_timeout": 1}).start()
    [proxy] = deployment.proxies
    assert proxy.post("/count?seconds=8", timeout=LONG).status_code == 200
    ready = deployment.wait_transition(Phase.READY)
    draining = deployment.wait_transition(Phase.DRAINING, after=ready.id, timeout=LONG)
    assert draining.time - ready.time >= 8
    deployment.wait_phase(Phase.OFF, timeout=LONG)
    deployment.instance().assert_nothing_cut()


@pytest.mark.slow
def test_with_a_cloud(deploy: Deploy, tmp_path: Path) -> None:
    cloud = Cloud()
    instance = cloud.add(INSTANCE, private_ip="127.0.0.1")
    with FakeEcs(cloud) as fake:
        aliyun = {"region": cloud.region, "instance_id": INSTANCE, "protocol": "http"}
        aliyun |= {"endpoint": fake.endpoint}
        credentials = {
            "ALIBABA_CLOUD_ACCESS_KEY_ID": fake.key.id,
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": fake.key.secret,
            "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
        }
        deployment = deploy(
            gpu={"provider": "aliyun", "aliyun": aliyun, "service": {"command": []}},
            env=credentials,
        ).start()
        with plain_machine(lambda: instance.status == "Running", deployment, tmp_path):
            [proxy] = deployment.proxies
            assert proxy.post(timeout=120).status_code == 200, deployment.history()
            deployment.wait_phase(Phase.OFF, timeout=120)
    assert (instance.starts, instance.stops) == (1, 1)
    assert instance.status == "Stopped"
    deployment.instance().assert_nothing_cut()


@contextlib.contextmanager
def plain_machine(
    runs: Callable[[], bool], deployment: Deployment, directory: Path
) -> Iterator[None]:
    """An image whose WebUI starts by itself: it runs whenever the cloud says that the instance does."""
    port = deployment.config.gpu["main"].port
    over = threading.Event()

    def follow() -> None:
        webui: subprocess.Popen[bytes] | None = None
        while not over.wait(0.1):
            if runs() and webui is None:
                journal = str(deployment.directory / "journal-main.jsonl")
                webui = subprocess.Popen(
                    [sys.executable, WEBUI, str(port), "--journal", journal], cwd=directory
                )
            elif not runs() and webui is not None:
                webui.terminate()
                webui.wait(30)
                webui = None
        if webui is not None:
            webui.kill()
            webui.wait()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


# What goes wrong


def test_a_webui_that_never_answers(deploy: Deploy, switch: Path) -> None:
    switch.touch()
    deployment = switched(deploy(gpu={"timing": {"load": 2}}), switch).start()
    [proxy] = deployment.proxies
    assert proxy.wake().status_code == 202
    failed = deployment.wait_transition(Phase.FAILED, timeout=LONG)
    assert failed.fields["cause"] == "load_timeout"
    said = json.loads(failed.fields["failure"])["message"]
    assert said == "the service is not ready after 2 s (connection refused)"
    why = cli(deployment, "events").stdout
    assert "its service was not ready in time" in why
    assert "connection refused" in why
    deployment.wait_transition(
        Phase.STOPPING, after=failed.id, timeout=LONG
    )  # it costs nothing more
    deployment.instance().assert_nothing_cut()


def test_a_webui_that_dies_while_ready_is_missed_and_its_instance_given_up(
    deploy: Deploy, switch: Path
) -> None:
    gpu = {"idle_timeout": 60, "timing": {"node_lost": 4, "retry": 0.5}}
    deployment = switched(deploy(gpu=gpu), switch).start()
    [proxy] = deployment.proxies
    assert proxy.post(timeout=LONG).status_code == 200
    after = deployment.last_event()
    switch.touch()
    kill_webui(deployment)
    missed = deployment.wait_transition(Phase.LOADING, after=after, timeout=LONG)
    assert missed.fields["cause"] == "service_restarted"
    status = proxy.status()
    assert status["phase"] == "loading"  # requests are held, visitors see the waiting page
    failed = deployment.wait_transition(Phase.FAILED, after=after, timeout=LONG)
    assert failed.fields["cause"] == "service_lost"
    said = json.loads(failed.fields["failure"])["message"]
    assert said == "the service has not answered for 4 s (connection refused)"
    assert failed.time - missed.time < 30
    switch.unlink()
    # It is still wanted, so it is started anew, and its WebUI with it.
    deployment.wait_transition(Phase.READY, after=failed.id, timeout=LONG)
    assert len(deployment.instance().starts) == 2


def test_a_webui_that_comes_back_needs_no_new_start(deploy: Deploy, switch: Path) -> None:
    deployment = switched(deploy(gpu={"idle_timeout": 60}), switch).start()
    [proxy] = deployment.proxies
    assert proxy.post(timeout=LONG).status_code == 200
    after = deployment.last_event()
    switch.touch()
    kill_webui(deployment)
    deployment.wait_transition(Phase.LOADING, after=after, timeout=LONG)
    switch.unlink()
    assert proxy.post(timeout=LONG).status_code == 200  # held meanwhile
    assert [to for to, _ in transitions(deployment, after)] == ["loading", "ready"]
    assert len(deployment.instance().starts) == 1


def test_an_agent_that_reports_all_the_same_is_refused(deploy: Deploy) -> None:
    deployment = deploy().start()
    [proxy] = deployment.proxies
    body = Hello(gpu="main", boot_id="boot-1234").model_dump_json().encode()
    secret = deployment.config.read_node_secret()
    headers = sign_message(secret, "POST", HELLO_PATH, body, now=time.time())
    answer = requests.post(proxy.url + HELLO_PATH, data=body, headers=headers, timeout=10)
    assert answer.status_code == 409
    assert "used without an agent (agent = false)" in answer.json()["refused"]
    assert not answer.json()["hello_again"]
    assert not deployment.store.snapshot("main").node


# Proxies that come and go


def test_a_proxy_that_restarts_goes_on_forwarding(deploy: Deploy) -> None:
    deployment = deploy(gpu={"idle_timeout": 60}).start()
    [proxy] = deployment.proxies
    first = proxy.post(timeout=LONG).json()
    boot = deployment.store.snapshot("main").node["boot_id"]
    after = deployment.last_event()
    proxy.kill()
    proxy.start().wait_ready()
    assert proxy.post(timeout=LONG).json() == first
    seen(deployment)
    assert transitions(deployment, after) == []
    assert deployment.store.snapshot("main").node["boot_id"] == boot


def seen(deployment: Deployment) -> None:
    """Wait until the WebUI has been asked from now on."""
    now = deployment.store.snapshot("main").now
    deadline = time.monotonic() + LONG
    while (deployment.store.snapshot("main").node_view.heartbeat_age or 0.0) > (
        deployment.store.snapshot("main").now - now
    ):
        assert time.monotonic() < deadline, deployment.history()
        time.sleep(0.1)


def test_of_two_proxies_the_leader_asks_and_its_death_changes_nothing(deploy: Deploy) -> None:
    readiness = {"path": "/asked", "interval": 0.2}
    gpu = {"idle_timeout": 60, "service": {"readiness": readiness}}
    deployment = deploy(gpu=gpu, replicas=2).start()
    leader = deployment.leader()
    [other] = deployment.others(leader)
    assert other.post(timeout=LONG).status_code == 200
    other.kill()
    other.start().wait_ready()  # it finds a GPU that is ready
    after = deployment.last_event()
    leader.send(signal.SIGSTOP)
    try:
        before = asked(deployment)
        assert before > 0
        time.sleep(2.0)
        # The other one asks nothing for as long as the leader's lock lasts.
        assert asked(deployment) - before <= 1
    finally:
        leader.kill()
    assert other.post(timeout=LONG).status_code == 200
    seen(deployment)
    assert deployment.leader() is other
    assert transitions(deployment, after) == []
    assert not [e for e in deployment.store.events("main", 1000, after=after) if e.kind == "hello"]


def asked(deployment: Deployment) -> int:
    lines = deployment.instance().journal
    return sum(line["event"] == "begin" and line["path"] == "/asked" for line in lines)


# Without a proxy


def test_the_command_line_asks_where_no_proxy_runs(deploy: Deploy) -> None:
    deployment = deploy(gpu={"idle_timeout": 60})
    done = cli(deployment, "up", "--for", "10m")
    assert done.returncode == 0, done.stderr + deployment.history()
    assert f"main is ready: {node(deployment)}" in done.stdout
    assert "no agent (agent = false) that could stop it" in done.stderr
    assert requests.get(node(deployment) + "/pid", timeout=10).status_code == 200
    assert "no agent, its service asked" in cli(deployment, "status").stdout
    assert "has no agent" in cli(deployment, "restart").stderr
    assert "has no agent" in cli(deployment, "logs").stderr
    assert cli(deployment, "down").returncode == 0
    assert deployment.store.snapshot("main").phase is Phase.OFF
    assert len(deployment.instance().stops) == 1


def test_without_a_proxy_it_is_told_that_the_webui_does_not_answer(
    deploy: Deploy, switch: Path
) -> None:
    switch.touch()
    deployment = switched(deploy(gpu={"timing": {"load": 2}}), switch)
    done = cli(deployment, "up")
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert "load_timeout" in last
    assert "connection refused" in last
    assert "agent could report to" not in done.stderr


# What doctor says


def test_doctor_says_what_is_lost(deploy: Deploy) -> None:
    deployment = deploy(gpu={"service": {"env": {"A": "b"}, "readiness": {"inference": "openai"}}})
    checks = json.loads(cli(deployment, "doctor", "--json").stdout)["checks"]
    found = {}
    for check in checks:
        found.setdefault(check["check"], []).append(check)
    assert "node secret" not in found
    assert "node url" not in found
    [agent] = found["agent"]
    assert agent["level"] == "warn"
    for word in ("boot", "not seen", "spot", "runs on"):
        assert word in agent["found"]
    assert "docs/agentless.md" in agent["fix"]
    ignored = found["service"][1]["found"]
    assert "env" in ignored
    assert "readiness.inference" in ignored
    assert "command" not in ignored  # the local instance runs it


def test_doctor_says_whether_the_webui_answers(deploy: Deploy) -> None:
    deployment = deploy(gpu={"idle_timeout": 60}).start()
    deployment.proxies[0].post(timeout=LONG)
    seen(deployment)
    checks = json.loads(cli(deployment, "doctor", "--json").stdout)["checks"]
    found = {check["check"]: check for check in checks}
    assert found["readiness"]["level"] == "ok", found
    assert found["node"]["level"] == "ok"
    deployment.proxies[0].send(signal.SIGTERM)
    deadline = time.monotonic() + LONG
    while deployment.store.snapshot("main").leader:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    checks = json.loads(cli(deployment, "doctor", "--json").stdout)["checks"]
    found = {check["check"]: check for check in checks}
    assert found["readiness"]["level"] == "warn", found
    assert "nobody stops it" in found["readiness"]["found"]
