"""`qwenctl doctor` fails for whatever `serve` or a wake would refuse on this machine."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

import pytest

from qwenctl.admin.deployment_checks import Deployment
from qwenctl.admin.node_checks import node_checks, recorded
from qwenctl.clouds.base import Observation
from qwenctl.config.deployment import Config
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Observed, Phase
from qwenctl.lib.findings import Finding, Level
from qwenctl.protocol.messages import Hello, Report, ServiceState
from qwenctl.store.store import Store
from tests.integration.qwenctl.admin.commands import Configure, Run, findings

BOOT = "0123456789abcdef"
SERVICE = '[gpu.main]\n[[gpu.main.service]]\ncommand = ["sleep", "9"]\n'
CONTAINER = '[gpu.main]\n[[gpu.main.service]]\n[gpu.main.service.container]\nimage = "model:1"\n'


@pytest.fixture
def doctor(run: Run, configure: Configure) -> Any:
    """Run the doctor on these GPUs; return its findings by check, and its exit code."""

    def doctor(gpus: str, *, top: str = "", **env: str) -> tuple[dict[str, Any], int]:
        configure(gpus, node_url="http://127.0.0.1:9", top=top)
        done = run("doctor", "--json", **{"QWENCTL_PROXY__LISTEN": "127.0.0.1:0", **env})
        return findings(done), done.returncode

    return doctor


def test_what_is_well_stays_well(doctor: Any) -> None:
    found, code = doctor(SERVICE)
    assert code == 0
    assert {name for name, one in found.items() if one["level"] != "ok"} == {"node url"}


# Access


@pytest.mark.parametrize(
    ("access", "check", "words"),
    [
        ('password_hash = "$argon2id$placeholder"', "password", "not a whole argon2id hash"),
        (
            'password_hash = "$argon2id$v=19$m=65536,t=3,p=4$PLACEHOLDER$PLACEHOLDER"',
            "password",
            "not a whole argon2id hash",
        ),
        ("[access.authenticators.nobody]", "authenticator", "no such authenticator is installed"),
    ],
)
def test_an_access_that_serve_refuses(doctor: Any, access: str, check: str, words: str) -> None:
    found, code = doctor(f'[access]\nmode = "password"\n{access}\n{SERVICE}')
    assert (code, found[check]["level"]) == (1, "fail")
    assert words in found[check]["found"]


def test_a_short_secret_in_the_settings(doctor: Any) -> None:
    found, code = doctor(SERVICE, QWENCTL_NODE_SECRET="short")
    assert (code, found["node secret"]["level"]) == (1, "fail")


def test_a_port_that_another_program_has(doctor: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(0.1)
        found, code = doctor(SERVICE, QWENCTL_PROXY__LISTEN=f"127.0.0.1:{port}")
    assert (code, found["listen"]["level"]) == (1, "fail")
    assert "the port is in use" in found["listen"]["found"]


def test_an_address_that_is_not_this_machines(doctor: Any) -> None:
    more = {"QWENCTL_PROXY__LISTEN": "192.0.2.1:8080", "QWENCTL_PROXY__ALLOW_ANONYMOUS": "true"}
    found, code = doctor(SERVICE, **more)
    assert (code, found["listen"]["level"]) == (1, "fail")
    assert "no such address" in found["listen"]["found"]


# Commands


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ('command = ["no-such-program"]', "no program 'no-such-program'"),
        ('command = ["/etc/passwd"]', "no program '/etc/passwd'"),
        ('command = ["sleep", "9"]\ncwd = "/no/such/place"', "no directory /no/such/place"),
        ('command = ["sleep", "9"]\nenv_file = "/no/such.env"', "env_file: cannot read"),
        ('command = ["sleep", "9"]\nweights = "/no/weights"', "there is no directory /no/weights"),
        ('command = ["sleep", "9"]\nenv = { PATH = "/nowhere" }', "no program 'sleep'"),
    ],
)
def test_a_command_that_the_agent_refuses(doctor: Any, service: str, words: str) -> None:
    found, code = doctor(f"[gpu.main]\n[[gpu.main.service]]\n{service}\n")
    assert code == 1
    assert [words in one["found"] for one in found.values() if one["level"] == "fail"] == [True]


def test_a_command_without_an_agent(doctor: Any) -> None:
    found, code = doctor(
        '[gpu.main]\nagent = false\n[[gpu.main.service]]\ncommand = ["no-such-program"]\n'
    )
    assert (code, found["command"]["level"]) == (1, "fail")


def test_a_service_port_that_another_program_has(doctor: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        found, code = doctor(f"{SERVICE}port = {port}\n")
    assert (code, found["command"]["level"]) == (1, "fail")
    assert f"port {port} is in use" in found["command"]["found"]


# Docker


class _Engine(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    runtimes: dict[str, Any] = {}  # noqa: RUF012
    images: list[Any] = []  # noqa: RUF012

    def get_request(self) -> tuple[Any, Any]:
        return self.socket.accept()[0], ("local", 0)


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        engine: Any = self.server
        answer: Any = {"ApiVersion": "1.44", "MinAPIVersion": "1.24"}
        if "/info" in self.path:
            answer = {"ServerVersion": "27", "Runtimes": engine.runtimes}
        elif "/images" in self.path:
            answer = engine.images
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Engine]:
    """A stand-in for Docker's daemon."""
    pytest.importorskip("docker")
    path = tmp_path / "d.sock"
    with _Engine(str(path), _Answers) as server:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_no_docker_here(doctor: Any) -> None:
    found, code = doctor(CONTAINER, DOCKER_HOST="unix:///no/such.sock")
    assert (code, found["Docker"]["level"]) == (1, "fail")
    assert "does not answer here" in found["Docker"]["found"]


def test_docker_without_the_gpus_runtime(doctor: Any, engine: _Engine) -> None:
    engine.runtimes = {"runc": {}}
    found, code = doctor(CONTAINER)
    assert (code, found["NVIDIA runtime"]["level"]) == (1, "fail")
    assert "nvidia-container-toolkit" in found["NVIDIA runtime"]["fix"]
    found, code = doctor(CONTAINER + 'gpus = "none"\n')
    assert (code, "NVIDIA runtime" in found) == (0, False)
    engine.runtimes = {"runc": {}, "nvidia": {}}
    found, code = doctor(CONTAINER)
    assert (code, found["NVIDIA runtime"]["level"]) == (0, "ok")


def test_an_image_that_is_never_pulled(doctor: Any, engine: _Engine) -> None:
    table = CONTAINER + 'gpus = "none"\npull = "never"\n'
    found, code = doctor(table)
    assert (code, found["image"]["level"]) == (1, "fail")
    engine.images = [{"Id": "sha256:1"}]
    assert doctor(table)[1] == 0


# What agent and proxies have told


def told(store: Store) -> dict[str, Finding]:
    """Return what the doctor says of a running instance, by check."""
    config = Config.model_validate(
        {"gpu": {"main": {"service": [{"name": "webui", "command": ["run"]}]}}}
    )
    deployment = Deployment(config, ["main"])
    deployment._store = store
    found = [*recorded("main", config.gpu["main"], store)]
    found += node_checks(deployment, "main", Observation(Observed.RUNNING))
    return {one.check: one for one in found if one.level is not Level.OK}


@pytest.fixture
def agent(store: Store) -> Callable[..., None]:
    """Let the agent of a booting instance report."""
    lock, _, _ = store.acquire("main", "test", 60)
    assert lock is not None
    move = Move(Phase.BOOTING, "found_running")
    store.transition("main", lock, Phase.OFF, move, drain=4, idle_timeout=600)
    assert store.hello(Hello(gpu="main", boot_id=BOOT), "n" * 32)[0] == "ok"
    nonces = count()

    def report(**fields: Any) -> None:
        given = {"gpu": "main", "boot_id": BOOT, "start_seq": 0, "state": "loading", **fields}
        nonce = f"{next(nonces):032}"
        assert store.report(Report(**given), nonce, heartbeat=5.0)[0] == "ok"

    return report


def service(state: str, **more: Any) -> tuple[ServiceState, ...]:
    return (ServiceState(name="webui", state=state, port=7860, **more),)  # type: ignore[arg-type]


def test_a_sound_agent(store: Store, agent: Any) -> None:
    agent(state="ready", services=service("ready"))
    assert told(store) == {}


def test_a_failed_agent(store: Store, agent: Any) -> None:
    agent(state="failed", error="no program 'vllm'", services=service("failed"))
    found = told(store)["agent"]
    assert (found.level, "no program 'vllm'" in found.found) == (Level.FAIL, True)


def test_a_service_that_failed_beside_another(store: Store, agent: Any) -> None:
    agent(state="ready", services=service("failed", error="exit code 1"))
    found = told(store)["service"]
    assert (found.level, found.found) == (Level.FAIL, "webui has failed: exit code 1")


def test_a_service_that_is_doubted(store: Store, agent: Any) -> None:
    agent(state="ready", services=service("ready", doubt="it answers no probe"))
    assert "it answers no probe" in told(store)["service"].found


def test_a_wake_that_failed(store: Store, agent: Any) -> None:
    agent(state="ready")
    lock, _, _ = store.acquire("main", "test", 60)
    assert lock is not None
    failure = Failure("service_failed", "no program 'vllm'", 2, 0.0, instance_is_bad=True)
    move = Move(Phase.FAILED, "service_failed", failure=failure)
    store.transition("main", lock, Phase.BOOTING, move, drain=4, idle_timeout=600)
    found = told(store)["last wake"]
    assert found.level is Level.FAIL
    assert "its service cannot run: no program 'vllm'" in found.found


def test_a_block(store: Store, agent: Any) -> None:
    agent(state="ready")
    store.block("main", "maintenance:anna", None, reason="driver", actor="anna")
    found = told(store)["block"]
    assert (found.level, "anna" in found.found) == (Level.WARN, True)
    assert "qwenctl unblock" in found.fix
