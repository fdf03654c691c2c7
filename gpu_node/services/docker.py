"""Run each service as a container of its own, which outlives the agent.

Docker's own state is the record. A service's container has a fixed name, so that there is never a
second container, and a label with a hash of its options, which `docker_ownership` proves: an agent that starts takes up a container
that runs, starts a container that does not, and replaces a container with other options.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import requests

from gpu_node.services.awaited import lack_of
from gpu_node.services.docker_errors import NO_COMMAND, error_text, start_error_text
from gpu_node.services.docker_options import container_options
from gpu_node.services.docker_ownership import (
    GPU_LABEL,
    HASH_LABEL,
    LOG_OPTIONS,
    SERVICE_LABEL,
    Ownership,
    unless_missing,
)
from gpu_node.services.image_pull import API_TIMEOUT, Leaving, pull_image
from gpu_node.services.log_lines import LineSink, secrets_of
from gpu_node.services.runtime import Output, StartFailed, base_url_of, service_environment
from gpu_node.settings import NodeSettings
from qwenctl.lib.extras import how_to_install
from qwenctl.lib.text import size
from qwenctl.protocol.messages import Progress, Service

log = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = ["GPU_LABEL", "HASH_LABEL", "SERVICE_LABEL", "DockerRuntime", "unless_missing"]

NETWORK = "qwenctl"
"""The network on which services find each other by name."""

DAEMON_PATIENCE = 60.0
"""Seconds to wait for a Docker daemon that is starting, or is being restarted."""

LOOK_INTERVAL = 5.0
"""Seconds between two looks at the health of a container."""

RECONNECT = 0.5
"""Seconds between two attempts to reach the daemon."""


class DockerRuntime:
    """Runs containers.

    Args:
        gpu: this GPU's name, part of each container's.
        log_dir: a service's output also goes to ``NAME.log`` here.
        host: the daemon's address, such as ``unix:///run/docker.sock``; empty: ``DOCKER_HOST``, or
            Docker's default.
        auth_file: a ``config.json`` as ``docker login`` writes it; empty: that of this user.
        key: proves which containers this node has made.
    """

    outlives_agent = True

    def __init__(
        self, gpu: str, log_dir: Path, *, host: str = "", auth_file: str = "", key: bytes = b""
    ) -> None:
        self.ownership = Ownership(gpu, key)
        self._gpu = gpu
        self.log_dir = log_dir
        self._host = host
        self._auth_file = auth_file
        self._keep: Collection[str] | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: NodeSettings, key: bytes = b"") -> DockerRuntime:
        host, auth_file = settings.docker_host, settings.registry_auth_file
        return cls(settings.gpu, Path(settings.log_dir), host=host, auth_file=auth_file, key=key)

    def settle(self, names: Collection[str]) -> None:
        """Have the containers of other services than these removed."""
        self._keep = frozenset(names)
        if not names:  # else those that are started see to it, before they begin
            threading.Thread(target=self._sweep_alone, daemon=True).start()

    def start(self, service: Service, output: Output) -> ServiceContainer:
        """Begin to run the container.

        Raises:
            StartFailed: the ``docker`` package is not installed, or `env_file` cannot be read.
        """
        if service.container is None:
            raise StartFailed("the spec names no image for it", final=True)
        try:
            import docker  # noqa: F401
        except ModuleNotFoundError:
            text = f"it needs the Docker SDK: {how_to_install('node')}"
            raise StartFailed(text, final=True) from None
        name = self.ownership.name(service.name)
        return ServiceContainer(self, name, service, service_environment(service), output)

    def client(self) -> Any:
        """Connect to the daemon. Raises what `docker` raises while it does not answer."""
        from docker import APIClient
        from docker.utils import kwargs_from_env

        given = kwargs_from_env() if not self._host else {"base_url": self._host}
        client = APIClient(version="auto", timeout=API_TIMEOUT, **given)
        if self._auth_file:
            client.reload_config(str(Path(self._auth_file).expanduser()))
        return client

    def sweep(self, client: Any) -> None:
        """Remove the containers of earlier services; they may hold a port or the GPU."""
        with self._lock:
            if (keep := self._keep) is None:
                return
            ours = {"label": f"{GPU_LABEL}={self._gpu}"}
            for found in client.containers(all=True, filters=ours):
                if found["Labels"].get(SERVICE_LABEL) in keep:
                    continue
                details = unless_missing(client.inspect_container, found["Id"])
                if details is None:
                    continue
                if not self.ownership.owns(client, details):
                    log.warning(
                        "the container %s has qwenctl's labels, but was not made by this node: it is "
                        "left alone",
                        found["Names"][0],
                    )
                    continue
                log.info("removing the container %s of an earlier spec", found["Names"][0])
                _remove(client, found["Id"], details["Config"].get("StopTimeout") or 10)
            self._keep = None

    def _sweep_alone(self) -> None:
        """Sweep where no container is wanted any more. Most such nodes have no Docker at all."""
        try:
            client = self.client()
        except Exception as error:
            log.debug("no Docker to look through: %s", error_text(error))
            return
        try:
            self.sweep(client)
        except Exception as error:
            log.warning("containers of an earlier spec may be left: %s", error_text(error))
        finally:
            client.close()

    def network(self, client: Any) -> str:
        """Return the id of the services' network, which is made if need be. Docker would make a
        second network of the same name, and then know neither by name."""
        with self._lock:
            found = client.networks(names=[NETWORK])
            exact = [network for network in found if network["Name"] == NETWORK]
            if not exact:
                return str(client.create_network(NETWORK, driver="bridge")["Id"])
            return str(min(exact, key=lambda network: network["Created"])["Id"])


class ServiceContainer:
    """One run of a service's container: a `gpu_node.services.runtime.ServiceRun`."""

    def __init__(
        self,
        runtime: DockerRuntime,
        name: str,
        service: Service,
        environment: Mapping[str, str],
        output: Output,
    ) -> None:
        assert service.container is not None
        self.base_url = base_url_of(service)
        self.up = False
        self.detail = ""
        self.taken_up = False
        self._runtime = runtime
        self._name = name
        self._service = service
        self._container = service.container
        self._environment = dict(environment)
        self._secrets = secrets_of(service, self._environment)
        self._output = output
        self._client: Any = None
        self._id = ""
        self._live_restore = False
        """Whether containers run on while the daemon is restarted."""
        self._leaving = threading.Event()
        """Set when nothing more is to be begun: it is to be stopped, or to be left."""
        self._detached = False
        self._stop_after: float | None = None
        self._over = threading.Event()

    def stop(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL after ``timeout`` seconds. Returns at once."""
        if self._stop_after is None and not self._over.is_set():
            self._stop_after = timeout
            self._leaving.set()

    def detach(self) -> None:
        """Let the container run on, or as much of it as is there."""
        self._detached = True
        self._leaving.set()

    # ---------------------------------------------------------------- life

    def wait(self) -> str:
        """Bring the container to run, then block until it has ended; return how it ended."""
        try:
            self._bring_up()
            return self._follow()
        except Leaving:
            return "stopped" if self._detached else self._end()
        finally:
            self.up = False
            self._over.set()
            if self._client is not None:
                self._client.close()

    def _bring_up(self) -> None:
        self._output.progress(Progress(phase="start", text="waiting for Docker"))
        self._client = self._patiently(self._runtime.client)
        self._live_restore = bool(self._patiently(self._client.info).get("LiveRestoreEnabled"))
        self._patiently(lambda: self._runtime.sweep(self._client))
        present = self._patiently(self._present)
        if present is not None and not self._patiently(lambda: self._ours(present)):
            raise StartFailed(
                f"there is a container {self._name} that this node's qwenctl has not made; remove "
                f"or rename it: docker rename {self._name} NAME",
                final=True,
            )
        if present is not None and self._running(present) and self._fits(present, image=""):
            self._id, self.taken_up = present["Id"], True
            log.info("%s runs already; taking it up", self._name)
            return
        image = self._image()
        self._output.progress(Progress(phase="create"))
        if present is not None and self._fits(present, image=image):
            self._id = present["Id"]
            self._patiently(self._start)
            return
        if present is not None:
            log.info("%s was made otherwise; making it anew", self._name)
            old, seconds = present["Id"], _whole(self._service.stop_timeout)
            self._patiently(lambda: _remove(self._client, old, seconds))
        self._id = self._patiently(lambda: self._create(image))
        self._patiently(self._start)
        if present is not None and present["Image"] != image:
            self._forget_image(present["Image"])

    def _follow(self) -> str:
        """Pass on the output until the container ends; return how it ended."""
        ends: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=self._read_log, daemon=True)
        reader.start()
        threading.Thread(target=lambda: ends.put(self._wait_for_exit()), daemon=True).start()
        self.up = True
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                self.detail = self._look()
                look_at = time.monotonic() + LOOK_INTERVAL
            try:
                how = ends.get(timeout=0.1)
            except queue.Empty:
                if self._leaving.is_set():
                    raise Leaving from None
            else:
                reader.join(2.0)  # the last words matter most
                return how

    def _look(self) -> str:
        """Return the container's state in words; the last known if Docker does not answer."""
        from docker.errors import DockerException

        try:
            present = self._present() or {}
        except (DockerException, requests.RequestException, OSError):
            return self.detail
        state = present.get("State", {})
        health = state.get("Health", {}).get("Status", "")
        words = [state.get("Status", "gone"), "" if health == "none" else health]
        return f"container {self._id[:12]} of {self._container.image}: " + ", ".join(
            word for word in words if word
        )

    def _end(self) -> str:
        """Stop the container if it is there, whichever agent started it; return how it ended."""
        timeout = self._stop_after or 0.0
        try:
            if self._client is None:
                self._client = self._runtime.client()
            present = self._present()
            if present is None or not (self._id or self._ours(present)):
                return "stopped"
            self._id = present["Id"]
            self._client.stop(self._id, timeout=_whole(timeout))
            return self._how()
        except Exception as error:
            log.error("%s could not be stopped: %s", self._name, error_text(error))
            return f"could not be stopped: {error_text(error)}"

    def _wait_for_exit(self) -> str:
        """Block until the container has ended, over restarts of the daemon; return how it ended."""
        from docker.errors import APIError, NotFound

        since = time.time()
        while not self._leaving.is_set():
            try:
                code = self._client.wait(self._id, timeout=None)["StatusCode"]
                how = self._how(self._exit_code_since(since, code))
                if self._container.restart != "no":
                    # Docker's policy is for the boot; in between, the agent counts crashes.
                    self._client.stop(self._id, timeout=0)
                return how
            except NotFound:
                return "the container was removed"
            except (APIError, requests.RequestException, OSError):
                # The daemon is gone, for a moment at least.
                if not self._live_restore and not self._answers():
                    return "the Docker daemon was stopped"
                try:
                    self._patiently(self._client.ping)
                except StartFailed as reason:
                    return f"the Docker daemon is gone: {reason}"
                except Leaving:
                    break
                time.sleep(RECONNECT)
        return ""

    def _exit_code_since(self, since: float, code: int) -> int:
        """Return the exit code that Docker noted at the first end since then, else ``code``.

        Docker up to 20.10 answers a wait with the code that the container has afterwards: 0 if its
        restart policy has started it again by then.
        """
        died = self._client.events(
            since=since,
            until=max(since, time.time()),  # the clock may have been set back
            filters={"container": self._id, "event": "die"},
            decode=True,
        )
        codes = [event["Actor"]["Attributes"].get("exitCode") for event in died]
        return int(codes[0]) if codes and codes[0] else code

    def _answers(self) -> bool:
        """Whether anything listens on the service's port."""
        host, _, port = self.base_url.removeprefix("http://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
        except OSError:
            return False
        return True

    def _how(self, code: int | None = None) -> str:
        """Return how it ended: with ``code``, or with the code that the container has now."""
        state = (self._present() or {}).get("State")
        if state is None:
            return "the container was removed"
        if state.get("OOMKilled"):
            limit = self._container.memory
            return "killed for want of memory" + (
                f" (its limit is {size(limit)}: raise `memory`)" if limit else ""
            )
        code = state.get("ExitCode") if code is None else code
        return f"exit code {code}" + (f": {state['Error']}" if state.get("Error") else "")

    # ---------------------------------------------------------------- steps

    def _present(self) -> Any | None:
        """Return the container as Docker knows it, or None."""
        return unless_missing(self._client.inspect_container, self._id or self._name)

    def _ours(self, present: Mapping[str, Any]) -> bool:
        return self._runtime.ownership.owns(self._client, present, self._digest())

    @staticmethod
    def _running(present: Mapping[str, Any]) -> bool:
        state = present.get("State", {})
        return bool(state.get("Running") or state.get("Restarting"))

    def _fits(self, present: Mapping[str, Any], *, image: str) -> bool:
        """Whether it has the options that it would get now and, if given, that image."""
        made = present["Config"]["Labels"].get(HASH_LABEL)
        return made == self._digest() and (not image or present["Image"] == image)

    def _digest(self) -> str:
        parts = [container_options(self._service, self._environment), self._container.image]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _image(self) -> str:
        """Return the id of the image, pulled if need be."""
        name, policy = self._container.image, self._container.pull
        found = self._patiently(lambda: self._image_id(name))
        if found and policy != "always":
            return found
        if policy == "never":
            text = f'the image {name} is not on this node, and pull = "never"'
            raise StartFailed(text, final=True)
        try:
            pull_image(name, self._runtime.client, self._leaving, self._output.progress)
        except StartFailed as reason:
            if not found:
                raise
            # An old image is better than no service.
            log.warning("%s; going on with the image that is here", reason)
        pulled = self._patiently(lambda: self._image_id(name))
        if not pulled:
            raise StartFailed(f"the image {name} was pulled and is not there")
        return pulled

    def _image_id(self, name: str) -> str:
        return str((unless_missing(self._client.inspect_image, name) or {}).get("Id", ""))

    def _create(self, image: str) -> str:
        container, service = self._container, self._service
        options = container_options(service, self._environment)
        client, networking = self._client, None
        if container.network == "bridge":
            network = self._runtime.network(client)
            endpoint = client.create_endpoint_config(aliases=[service.name])
            networking = client.create_networking_config({network: endpoint})
            options["host"]["network_mode"] = network
        host_config = client.create_host_config(
            **options["host"],
            device_requests=options["devices"],
            # The log is bounded here too: what the agent keeps is a copy.
            log_config={"Type": "json-file", "Config": LOG_OPTIONS},
        )
        made = client.create_container(
            image,
            **options["own"],
            name=self._name,
            labels=self._runtime.ownership.labels(service.name, self._digest()),
            stop_timeout=_whole(service.stop_timeout),
            host_config=host_config,
            networking_config=networking,
        )
        return str(made["Id"])

    def _start(self) -> None:
        from docker.errors import APIError

        try:
            self._client.start(self._id)
        except APIError as error:
            text = start_error_text(error, self._service)
            raise StartFailed(text, final=NO_COMMAND in text and not lack_of(text)) from None

    def _forget_image(self, image: str) -> None:
        """Remove the earlier container's image if nothing uses it and it has no name: a newer image
        has taken the name."""
        from docker.errors import DockerException

        try:
            if not self._client.inspect_image(image)["RepoTags"]:
                self._client.remove_image(image)
                log.info("removed the image %s, which a newer one has replaced", image[:19])
        except (DockerException, requests.RequestException) as error:
            log.info("the image %s stays: %s", image[:19], error_text(error))

    # ---------------------------------------------------------------- output

    def _read_log(self) -> None:
        """Pass on the container's output until it ends, over restarts of the daemon."""
        from docker.errors import APIError

        log_file = self._runtime.log_dir / f"{self._service.name}.log"
        sink = LineSink(log_file, self._output, self._secrets)
        try:
            client = self._runtime.client()
            # After an earlier agent's start the last lines say how far it is.
            options: dict[str, Any] = {"tail": 50}
            if not self.taken_up and (started := self._started_at()):
                options = {"since": started}
            while not self._leaving.is_set():
                try:
                    stream = client.logs(
                        self._id, stdout=True, stderr=True, stream=True, follow=True, **options
                    )
                    for chunk in stream:
                        if self._detached:
                            return
                        sink.feed(chunk)
                        options = {"since": time.time()}
                    if not self._running(self._present() or {}):
                        return
                except (APIError, requests.RequestException, OSError):
                    pass  # the daemon is being restarted
                if self._over.wait(RECONNECT):
                    return
        except Exception as error:
            log.warning("the output of %s cannot be read: %s", self._name, error_text(error))
        finally:
            sink.close()

    def _started_at(self) -> int:
        """Return when the container was started, in seconds since 1970; 0: unknown."""
        from datetime import datetime, timezone

        stamp = (self._present() or {}).get("State", {}).get("StartedAt", "")
        try:
            # 2026-11-21T09:00:00.123456789Z, with more digits than Python reads
            started = datetime.fromisoformat(stamp[:19]).replace(tzinfo=timezone.utc)
        except ValueError:
            return 0
        return max(0, int(started.timestamp()))

    # ---------------------------------------------------------------- help

    def _patiently(self, step: Callable[[], T]) -> T:
        """Do a step with the daemon; wait for a daemon that does not answer.

        Raises:
            Leaving: nothing more is to be begun.
            StartFailed: the daemon refused, or did not answer for `DAEMON_PATIENCE`.
        """
        from docker.errors import APIError, DockerException

        until = time.monotonic() + DAEMON_PATIENCE
        while True:
            if self._leaving.is_set():
                raise Leaving
            try:
                return step()
            except StartFailed:
                raise
            except APIError as error:
                if error.status_code is not None and error.status_code < 500:
                    invalid = "invalid reference" in str(error)
                    raise StartFailed(error_text(error), final=invalid) from None
                reason = error_text(error)
            except (DockerException, requests.RequestException, OSError) as error:
                reason = error_text(error)
            if time.monotonic() >= until:
                raise StartFailed(
                    f"Docker does not answer: {reason}; is it installed, running, and may this user "
                    "use it (group docker)?"
                )
            self._leaving.wait(RECONNECT)


def _remove(client: Any, container: str, stop_timeout: int) -> None:
    """Stop and remove the container, if it is still there."""
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        client.stop(container, timeout=stop_timeout)
        client.remove_container(container, v=True, force=True)


def _whole(seconds: float) -> int:
    """Round to whole seconds, which Docker counts; it answers a stop when they are over."""
    return int(seconds + 0.5)
