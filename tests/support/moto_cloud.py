"""moto's server in a process of its own, with the times and the refusals that EC2 has.

moto changes an instance's state at once and from any state. EC2 takes its time (``pending``,
``stopping``), refuses to start what is stopping and to stop what is pending, and may find out after
it has accepted a start that there is no machine. `main` adds that to moto and serves it:

    python -m tests.support.moto_cloud --port 5000 --pending 5 --stopping 5
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from tests.support.net import free_ports
from tests.support.paths import ROOT
from tests.support.program import inherited

__all__ = ["CREDENTIALS", "REGION", "AgentMachine", "MotoCloud"]

REGION = "us-east-1"

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "test-secret-test-secret-test-secret-test",
    "AWS_SESSION_TOKEN": "test-token-test-token-test-token-test-token-test-token",
    "AWS_EC2_METADATA_DISABLED": "true",  # nobody looks for the metadata service of a real cloud
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""The environment that boto3 needs, and nothing of this machine's own."""


class MotoCloud:
    """One server; a context manager."""

    def __init__(self, log: Path) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MotoCloud:
        command = [sys.executable, "-m", "tests.support.moto_cloud", "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **CREDENTIALS}, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/_cloud/journal", timeout=5).status_code == 200:
                    return self
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "moto does not answer"
            time.sleep(0.1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def client(self) -> Any:
        """A boto3 client of this server that needs nothing from the environment."""
        import boto3

        return boto3.session.Session(
            region_name=REGION,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        ).client("ec2", endpoint_url=self.url)

    def set(self, **changes: Any) -> None:
        """``pending``, ``stopping`` (seconds), ``no_capacity`` (accepted starts fail so often)."""
        self._tell("set", changes)

    def new_instance(self, client: Any, *, state: str = "stopped", **more: Any) -> str:
        """The id of a new instance in that state."""
        made = client.run_instances(
            ImageId="ami-12c6146b", InstanceType="g5.xlarge", MinCount=1, MaxCount=1, **more
        )
        instance_id = str(made["Instances"][0]["InstanceId"])
        self.happen(instance_id, state, "Client.UserInitiatedShutdown")
        return instance_id

    def happen(self, instance_id: str, state: str, code: str = "", message: str = "") -> None:
        """The instance is in this state now, for this `StateReason`, whoever did it."""
        self._tell("happen", {"id": instance_id, "state": state, "code": code, "message": message})

    def journal(self, instance_id: str, verb: str) -> int:
        """How many such calls took effect: success without effect does not count."""
        lines = requests.get(f"{self.url}/_cloud/journal", timeout=30).json()
        return sum(line["id"] == instance_id and line["verb"] == verb for line in lines)

    def state(self, instance_id: str) -> str:
        """EC2's name for the instance's state."""
        answer = requests.get(f"{self.url}/_cloud/state", params={"id": instance_id}, timeout=30)
        return str(answer.json())

    def _tell(self, what: str, content: Mapping[str, Any]) -> None:
        requests.post(f"{self.url}/_cloud/{what}", json=content, timeout=30).raise_for_status()


class AgentMachine:
    """Runs the real agent whenever the cloud says that the instance is running; a context manager.

    Args:
        cloud: where the instance is.
        instance_id: its id.
        directory: the machine's disk.
        settings: the agent's settings (`gpu_node.settings`), in capitals.
    """

    def __init__(
        self, cloud: MotoCloud, instance_id: str, directory: Path, settings: Mapping[str, str]
    ) -> None:
        self._cloud = cloud
        self._id = instance_id
        self._directory = directory
        self._settings = settings
        self._over = threading.Event()
        self._agent: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.boots = 0

    def __enter__(self) -> AgentMachine:
        self._directory.mkdir(parents=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(60)
        self._off()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            running = self._cloud.state(self._id) == "running"
            if running and self._agent is None:
                self._on()
            elif not running:
                self._off()

    def _on(self) -> None:
        settings = {
            "BOOT_ID": uuid.uuid4().hex,
            "STATE_DIR": str(self._directory / "state"),
            "LOG_DIR": str(self._directory / "logs"),
            **self._settings,
        }
        env = inherited()
        env.update({f"QWENCTL_NODE__{key}": value for key, value in settings.items()})
        with (self._directory / "agent.log").open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "gpu_node"], cwd=ROOT, env=env, stdout=log, stderr=log
            )
        self.boots += 1

    def _off(self) -> None:
        if self._agent is None:
            return
        self._agent.send_signal(signal.SIGTERM)
        try:
            self._agent.wait(30)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        self._agent = None


# The server


class _Times:
    """What is added to moto: how long things take, what fails, and what took effect."""

    def __init__(self, pending: float, stopping: float) -> None:
        self.pending = pending
        self.stopping = stopping
        self.no_capacity = 0
        self.journal: list[dict[str, str]] = []
        self.instances: dict[str, Any] = {}
        # Reentrant: moto may answer one call by way of another.
        self.lock = threading.RLock()

    def install(self) -> None:
        """Replace what moto's instances do on start and stop."""
        from moto.ec2.exceptions import EC2ClientError
        from moto.ec2.models.instances import Instance, InstanceState, StateReason

        times, moto_init, moto_start, moto_stop = (
            self,
            Instance.__init__,
            Instance.start,
            Instance.stop,
        )
        codes = {"pending": 0, "running": 16, "stopping": 64, "stopped": 80, "terminated": 48}

        def init(instance: Any, *args: Any, **kwargs: Any) -> None:
            moto_init(instance, *args, **kwargs)
            times.instances[instance.id] = instance

        def enter(instance: Any, state: str, code: str = "", message: str = "") -> None:
            with times.lock:
                instance._state = InstanceState(state, codes[state])
                if code:
                    instance.state_reason = StateReason(message or code, code)

        def after(seconds: float, instance: Any, old: str, new: str, code: str = "") -> None:
            def change() -> None:
                with times.lock:
                    if instance._state.name == old:
                        enter(instance, new, code)

            timer = threading.Timer(seconds, change)
            timer.daemon = True
            timer.start()

        def start(instance: Any) -> Any:
            with times.lock:
                before = copy.copy(instance._state)
                if before.name in ("pending", "running"):
                    return before
                _must(instance, before.name == "stopped", "started")
                moto_start(instance)
                enter(instance, "pending")
                times.journal.append({"id": instance.id, "verb": "start"})
                if times.no_capacity > 0:
                    times.no_capacity -= 1
                    code = "Server.InsufficientInstanceCapacity"
                    after(times.pending, instance, "pending", "stopped", code)
                else:
                    after(times.pending, instance, "pending", "running")
                return before

        def stop(instance: Any) -> Any:
            with times.lock:
                before = copy.copy(instance._state)
                if before.name in ("stopping", "stopped"):
                    return before
                _must(instance, before.name == "running", "stopped")
                moto_stop(instance)
                enter(instance, "stopping")
                times.journal.append({"id": instance.id, "verb": "stop"})
                after(times.stopping, instance, "stopping", "stopped")
                return before

        def _must(instance: Any, fits: bool, verb: str) -> None:
            if not fits:
                message = (
                    f"The instance '{instance.id}' is not in a state from which it can be {verb}."
                )
                raise EC2ClientError("IncorrectInstanceState", message)

        self.enter = enter
        Instance.__init__ = init  # type: ignore[method-assign]
        Instance.start = start  # type: ignore[method-assign]
        Instance.stop = stop  # type: ignore[method-assign]

    def answer(self, path: str, query: Mapping[str, str], content: Mapping[str, Any]) -> Any:
        """What ``/_cloud/…`` does."""
        if path == "journal":
            return self.journal
        if path == "state":
            return self.instances[query["id"]]._state.name
        if path == "set":
            vars(self).update(content)
        elif path == "happen":
            instance = self.instances[content["id"]]
            self.enter(instance, content["state"], content["code"], content["message"])
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--port", type=int, default=5000, help="listen on this port of 127.0.0.1")
    parser.add_argument("--pending", type=float, default=0.5, help="seconds from start to running")
    parser.add_argument("--stopping", type=float, default=0.5, help="seconds from stop to stopped")
    options = parser.parse_args()
    os.environ["MOTO_PORT"] = str(options.port)

    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple
    from werkzeug.wrappers import Request, Response

    times = _Times(options.pending, options.stopping)
    times.install()
    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = str(environ["PATH_INFO"])
        if not path.startswith("/_cloud/"):
            return moto(environ, start_response)  # type: ignore[no-any-return]
        request = Request(environ)
        content = json.loads(request.data or b"{}")
        result = times.answer(path.removeprefix("/_cloud/"), request.args, content)
        return Response(json.dumps(result), content_type="application/json")(
            environ, start_response
        )

    run_simple("127.0.0.1", options.port, app, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
