"""The local provider: an "instance" that is a process on this machine.

For demos and tests, with the real agent. The instance is the program
`qwenctl.clouds.local.machine`; it survives the process that started it, takes time to start and
to stop, and can be set to fail (`qwenctl.clouds.local.settings.LocalConfig`).

Its directory holds ``status.json`` (its record), ``starts.log`` and ``stops.log`` (a line for each
accepted call: Unix time, caller's process id, boot id), ``logs/`` and ``agent/``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwenctl.clouds.base import (
    Accepted,
    Conflict,
    Context,
    Denied,
    NoCapacity,
    Observation,
    ProviderError,
    Transient,
)
from qwenctl.clouds.local.machine import FILES, Record, locked
from qwenctl.core import failures
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError
from qwenctl.lib.descriptors import limit_for_children
from qwenctl.lib.private_file import open_private, private_directory, write_private

if TYPE_CHECKING:
    from qwenctl.clouds.local.settings import LocalConfig
    from qwenctl.protocol.messages import Spec

ADDRESS = "127.0.0.1"

LOCK_SECONDS = 2.0
"""How long a call waits for the lock: well within `LocalProvider.call_timeout`."""

# `sh` starts the machine in the background and ends, so that a proxy that outlives the machine has
# no zombie. It gets the limit of open files that we were started with.
_DETACH = 'ulimit -S -n "$1"; log=$2; shift 2; "$@" </dev/null >>"$log" 2>&1 & echo "$!"'


class LocalProvider:
    """A local instance: a `qwenctl.clouds.base.Provider`.

    ``start`` and ``stop`` return at once; concurrent calls of several processes are serialized, so
    that there is never more than one machine.

    Args:
        gpu: the GPU's name, and the instance's.
        config: its latencies and its fault.
        state_dir: the instance's directory is ``state_dir / gpu``.
        proxy_urls: the proxies' URLs for the agent.
        node_secret_file: the file of the secret that the agent signs with, or
        node_secret: the secret itself, passed in the environment.
        dead_man: seconds without contact until the agent stops the instance.
        spec: what the node runs until a proxy says otherwise.
        program: the program of an instance without an agent; None: it has an agent.
    """

    call_timeout: float = 5.0
    observe_interval: float = 0.05

    def __init__(
        self,
        *,
        gpu: str,
        config: LocalConfig,
        state_dir: Path,
        proxy_urls: Sequence[str],
        node_secret_file: Path | None = None,
        node_secret: str = "",
        dead_man: float = 600.0,
        spec: Spec | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        self.directory = state_dir.absolute() / gpu
        self._gpu = gpu
        self._config = config
        self._proxy_urls = list(proxy_urls)
        self._secret_file = node_secret_file
        self._secret = node_secret
        self._dead_man = dead_man
        self._spec = spec
        self._program = program
        self._record = Record(self.directory)

    def describe(self) -> Observation:
        """Read the instance's record and check its process, without the lock.

        Raises:
            Transient: this machine cannot read them; the instance may be running.
        """
        try:
            return self._describe()
        except OSError as error:
            raise _failed("look at", error) from None

    def _describe(self) -> Observation:
        record = self._record.read()
        state = record.get("state", "stopped")
        instance_id = f"local-{self._gpu}"
        if state == "stopped":
            return Observation(Observed.STOPPED, instance_id, reason=record.get("reason", ""))
        if not self._record.alive(record):
            # The machine may have written its last record meanwhile.
            again = self._record.read()
            if again != record:
                return self._describe()
            reason = "" if state == "stopping" else "the instance died"
            return Observation(Observed.STOPPED, instance_id, reason=reason)
        address = ADDRESS if state == "running" else ""
        return Observation(Observed(state), instance_id, address, record.get("reason", ""))

    def start(self) -> Accepted:
        """Start the machine, or do nothing if it runs; the request id is the boot id.

        Raises:
            NoCapacity, Denied: the configured fault.
            Conflict: it is being stopped.
            Transient: this machine cannot start processes or write its state now.
        """
        try:
            private_directory(self.directory, FILES, trusting=True)
            with locked(self.directory, LOCK_SECONDS):
                return Accepted(self._start())
        except ConfigError as error:
            raise Denied(str(error)) from None
        except OSError as error:
            raise _failed("start", error) from None

    def stop(self) -> Accepted:
        """Stop the machine, whether it runs or still starts.

        Raises:
            Transient: this machine cannot write its state now.
        """
        try:
            if not self.directory.is_dir():
                return Accepted()
            with locked(self.directory, LOCK_SECONDS):
                return Accepted(self._stop())
        except OSError as error:
            raise _failed("stop", error) from None

    def _start(self) -> str:
        state = self._describe().state
        if state in (Observed.STARTING, Observed.RUNNING):
            return str(self._record.read().get("boot_id", ""))
        if state is Observed.STOPPING:
            raise Conflict("the instance is being stopped", cloud_code="IncorrectInstanceStatus")
        if self._config.fail == failures.NO_CAPACITY:
            raise NoCapacity("no such machine is free", cloud_code="local.fail=no_capacity")
        if self._config.fail == failures.DENIED:
            raise Denied("the account may not start instances", cloud_code="local.fail=denied")
        boot_id = uuid.uuid4().hex
        pid = self._spawn(boot_id)
        self._record.write(boot_id=boot_id, state="starting", pid=pid)
        self._log("starts.log", boot_id)
        return boot_id

    def _stop(self) -> str:
        record = self._record.read()
        if record.get("state") not in ("starting", "running") or not self._record.alive(record):
            return ""
        boot_id = str(record["boot_id"])
        self._record.write(boot_id=boot_id, state="stopping", pid=record["pid"])
        os.kill(record["pid"], signal.SIGTERM)
        self._log("stops.log", boot_id)
        return boot_id

    def _spawn(self, boot_id: str) -> int:
        """Start the machine's process and return its process id."""
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        # The empty working directory of services that set none; a file server may show it.
        work = self.directory / "work"
        work.mkdir(exist_ok=True)
        if self._spec is not None:
            write_private(self.directory / "agent" / "spec.json", self._spec.model_dump_json())
        command = [
            *(sys.executable, "-m", "qwenctl.clouds.local.machine"),
            *("--directory", str(self.directory)),
            *("--gpu", self._gpu),
            *("--boot-id", boot_id),
            *("--boot-seconds", str(self._config.boot_seconds)),
            *("--stop-seconds", str(self._config.stop_seconds)),
            *("--dead-man", str(self._dead_man)),
        ]
        for url in self._proxy_urls:
            command += ["--proxy-url", url]
        if self._secret_file is not None:
            command += ["--node-secret-file", str(self._secret_file)]
        if self._config.fail == "boot_hangs":
            command += ["--boot-hangs"]
        if self._config.fail == "dies_after":
            command += ["--dies-after", str(self._config.dies_after)]
        if self._program is not None:
            command += ["--no-agent", "--", *self._program]
        # A real instance does not have the proxy's settings and secrets either.
        env = {key: value for key, value in os.environ.items() if not key.startswith("QWENCTL_")}
        if self._secret_file is None:
            env["QWENCTL_NODE__NODE_SECRET"] = self._secret
        log = str(logs / "machine.log")
        done = subprocess.run(
            ["/bin/sh", "-c", _DETACH, "sh", limit_for_children(), *(log, *command)],
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            check=False,
        )
        try:
            return int(done.stdout)
        except ValueError:
            raise Transient("the machine's process could not be started") from None

    def _log(self, name: str, boot_id: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with os.fdopen(open_private(self.directory / name, flags), "a") as file:
            file.write(f"{time.time():.3f} {os.getpid()} {boot_id}\n")


def _failed(verb: str, error: OSError) -> ProviderError:
    where = f" ({error.filename})" if error.filename else ""
    return Transient(f"cannot {verb} the local instance: {error.strerror}{where}")


def make(
    settings: LocalConfig, context: Context, kind: type[LocalProvider] = LocalProvider
) -> LocalProvider:
    """Make the provider of a GPU on this machine.

    Raises:
        ConfigError: the node secret can be neither read nor made.
    """
    secret = context.read_secret()  # makes the file at need
    return kind(
        gpu=context.gpu,
        config=settings,
        state_dir=context.state_path / "instances" / context.deployment,
        proxy_urls=context.node_urls,
        node_secret_file=context.secret_file,
        node_secret="" if context.secret_file else secret,
        dead_man=context.dead_man,
        spec=context.spec if context.agent else None,
        program=None if context.agent else context.program,
    )
