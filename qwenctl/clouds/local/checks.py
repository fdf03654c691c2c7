"""Checks of the doctor for a GPU on this machine: whether its services can start here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qwenctl.clouds.base import Context, Observation, ProviderError
from qwenctl.clouds.local.provider import LocalProvider, make
from qwenctl.clouds.local.settings import LocalConfig
from qwenctl.errors import ConfigError
from qwenctl.lib.docker_engine import GPU_ADVICE, knows_gpus
from qwenctl.lib.extras import how_to_install
from qwenctl.lib.findings import Check, Finding, Stop, fail, ok, refusal, warn
from qwenctl.lib.private_file import read_regular
from qwenctl.lib.programs import listens, why_not_run
from qwenctl.protocol.messages import Service

DOCKER_SECONDS = 5
"""How long Docker may take to answer, in whole seconds."""


def checks(
    settings: LocalConfig, context: Context
) -> tuple[list[Check], Callable[[], Observation]]:
    """Return the checks, each of which needs those before it, and the observation."""
    steps = _Checks(settings, context)
    found: list[Check] = [steps.provider, steps.commands]
    return [*found, steps.containers] if context.agent else found, steps.observation


class _Checks:
    def __init__(self, settings: LocalConfig, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._seen: Observation

    def observation(self) -> Observation:
        return self._seen

    def provider(self) -> Iterable[Finding]:
        try:
            provider: LocalProvider = make(self._settings, self._context)
            self._seen = provider.describe()
        except ConfigError as error:
            name = self._context.gpu
            raise Stop(fail("provider", str(error), f"Correct [gpu.{name}.local].")) from None
        except ProviderError as error:
            raise Stop(refusal("provider", error)) from None
        yield ok("provider", f"local says the instance is {self._seen.state.value}")
        if self._settings.fail:
            yield warn(
                "fault",
                f"local.fail = {self._settings.fail!r} lets its starts go wrong",
                f"Remove it from [gpu.{self._context.gpu}.local], unless that is a trial.",
            )

    def commands(self) -> Iterable[Finding]:
        """Check what the agent refuses to start, or what without an agent does not start."""
        for service in self._services("process"):
            environment = dict(os.environ)
            if self._context.agent:
                yield from self._files(service)
                environment.update(service.env)
            problem = why_not_run(service.command, service.cwd, environment.get("PATH"))
            if problem:
                yield fail(
                    "command",
                    f"{service.name}: {problem}",
                    f"Install it here, or correct `command` in [[gpu.{self._context.gpu}.service]].",
                )
            elif self._seen.state.gone and listens(service.port):
                yield fail(
                    "command",
                    f"{service.name}: port {service.port} is in use by another program",
                    "End that program, or choose another `port`.",
                )
            else:
                yield ok("command", f"{service.name}: {service.command[0]}")

    def containers(self) -> Iterable[Finding]:
        """Check Docker, and that it has what the containers ask for."""
        services = self._services("docker")
        if not services:
            return
        for service in services:
            yield from self._files(service)
        try:
            import docker
        except ModuleNotFoundError:
            found = "the package docker is not installed"
            yield fail("Docker", found, f"Run `{how_to_install('node')}`.")
            return
        try:
            client = docker.APIClient(
                version="auto", timeout=DOCKER_SECONDS, **docker.utils.kwargs_from_env()
            )
            with contextlib.closing(client):
                yield from self._of_docker(client, services)
        except (
            Exception
        ) as error:  # no daemon, no permission, a wrong DOCKER_HOST: each its own kind
            words = (str(error).splitlines() or [type(error).__name__])[0][:200]
            yield fail(
                "Docker",
                f"does not answer here: {words}",
                "Install and start Docker; this user must be in the group docker.",
            )

    def _of_docker(self, client: Any, services: list[Service]) -> Iterable[Finding]:
        info = client.info()
        yield ok("Docker", f"version {info.get('ServerVersion')}")
        wants = [one.name for one in services if one.container and one.container.gpus]
        if wants and not knows_gpus(info):
            words = f"Docker here knows none, and {', '.join(wants)} wants GPUs"
            advice = f"{GPU_ADVICE[:1].upper()}{GPU_ADVICE[1:]}"
            yield fail("NVIDIA runtime", words, f'{advice}; or set gpus = "none" in its container.')
        elif wants:
            yield ok("NVIDIA runtime", "Docker has it")
        for service in services:
            image = service.container.image if service.container else ""
            if service.container and service.container.pull == "never" and not client.images(image):
                yield fail(
                    "image",
                    f'{service.name}: the image {image} is not here, and pull is "never"',
                    f"Run `docker pull {image}`, or remove `pull`.",
                )

    def _files(self, service: Service) -> Iterable[Finding]:
        table = f"[[gpu.{self._context.gpu}.service]]"
        if service.env_file:
            try:
                read_regular(Path(service.env_file))
            except OSError as error:
                reason = error.strerror or str(error)
                found = f"{service.name}: env_file: cannot read {service.env_file}: {reason}"
                yield fail("files", found, f"Write it, or correct `env_file` in {table}.")
        if service.weights and not Path(service.weights).is_dir():
            found = f"{service.name}: there is no directory {service.weights}"
            yield fail("files", found, f"Mount or download them, or correct `weights` in {table}.")

    def _services(self, runtime: str) -> list[Service]:
        found = [one for one in self._context.spec.services if one.runtime == runtime]
        # Without an agent the instance runs the first command only.
        return found if self._context.agent else [one for one in found[:1] if one.command]
