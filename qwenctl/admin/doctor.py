"""Check everything that the first wake needs, for `qwenctl doctor`.

Each check looks at one thing and changes nothing. The checks of a cloud are in its folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from qwenctl.admin.deployment_checks import Deployment
from qwenctl.admin.node_checks import node_checks, recorded
from qwenctl.clouds.admin import admin_of
from qwenctl.clouds.base import Observation, ProviderError
from qwenctl.clouds.registry import part
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.providers import context_of, make_provider
from qwenctl.config.read_schedules import schedules
from qwenctl.errors import ConfigError
from qwenctl.lib.findings import Check, Finding, Stop, fail, ok, refusal, run_checks, warn


def examine(config: Config, gpus: Iterable[str]) -> Iterator[Finding]:
    """Yield each finding at once: the deployment's, then each GPU's."""
    names = list(gpus)
    deployment = Deployment(config, names)
    yield from run_checks(deployment.checks())
    for name in names:
        for finding in run_checks(gpu_checks(deployment, name)):
            yield replace(finding, gpu=name)
        candidates = config.gpu[name].candidates()
        for own, gpu in candidates:
            for finding in run_checks(_cloud_checks(deployment, name, gpu)):
                yield replace(finding, gpu=f"{name}: {own}" if len(candidates) > 1 else name)


def _cloud_checks(deployment: Deployment, name: str, gpu: GpuConfig) -> list[Check]:
    try:
        checks_of = part(gpu.provider, "checks")
    except ConfigError:
        checks_of = None
    if checks_of is None:
        return other_checks(deployment, name, gpu)
    checks, observation = checks_of(gpu.settings, context_of(name, gpu, deployment.config))
    return [*checks, lambda: node_checks(deployment, name, observation())]


def gpu_checks(deployment: Deployment, name: str) -> list[Check]:
    """Return the checks of a GPU of any provider."""

    gpu = deployment.config.gpu[name]

    def services() -> Iterable[Finding]:
        if gpu.service:
            names = ", ".join(f"{service.name} on port {service.port}" for service in gpu.service)
            yield ok("service", names)
        else:
            yield warn(
                "service",
                "none: the instance starts nothing",
                f"Add [[gpu.{name}.service]] with the `command` and the `port` of what it should "
                "run.",
            )

    def agentless() -> Iterable[Finding]:
        yield ok("service", f"the instance starts it by itself, on port {gpu.port}")
        yield warn(
            "agent",
            "none (agent = false): nothing is told of a boot but its length; work that does not go "
            "through the proxy is not seen, and cut when the GPU is stopped; nothing warns of a spot "
            "interruption; and an instance that runs when the proxy has died runs on",
            f"See docs/agentless.md: set a budget alarm in the cloud{_alarm(gpu)}, and let "
            "idle_timeout be longer than such work; or install the agent (`qwenctl provision`).",
        )
        if ignored := _ignored(gpu):
            yield warn(
                "service",
                f"without an agent nobody heeds {', '.join(ignored)}",
                f"Remove them from [[gpu.{name}.service]], or remove agent = false.",
            )

    def followed() -> Iterable[Finding]:
        try:
            names = ", ".join(one.name for one in schedules(deployment.config, name))
        except ConfigError as error:
            yield fail(
                "schedules", str(error), "Until then what was read before counts, if any was."
            )
            return
        yield ok("schedules", names)

    planned = [followed] if gpu.prewarm or gpu.off_hours else []
    found = [services if gpu.agent else agentless, *planned]
    if (store := deployment.store) is not None:
        found.append(lambda: recorded(name, gpu, store))
    return found


def _alarm(gpu: GpuConfig) -> str:
    """Return the advice on the cloud's alarm against idle instances."""
    try:
        admin = admin_of(gpu.provider)
    except ConfigError:
        return ""
    return f", and {admin.IDLE_ALARM}" if admin else ""


def _ignored(gpu: GpuConfig) -> list[str]:
    """Return the keys of service tables that need an agent."""
    without_agent = {"name", "port", "readiness"}
    # The local provider runs the first command itself.
    if gpu.settings.on_this_machine:
        without_agent.add("command")
    found = {key for service in gpu.service for key in service.model_fields_set} - without_agent
    if any(service.readiness.inference for service in gpu.service):
        found.add("readiness.inference")
    return sorted(found)


def other_checks(deployment: Deployment, name: str, gpu: GpuConfig) -> list[Check]:
    """Return the checks of a provider without its own: its answer, then the node."""
    seen: list[Observation] = []

    def provider() -> Iterable[Finding]:
        try:
            seen.append(make_provider(name, gpu, deployment.config).describe())
        except ConfigError as error:
            raise Stop(
                fail("provider", str(error), f"Correct gpu.{name}.provider, or install it.")
            ) from None
        except ProviderError as error:
            raise Stop(refusal("provider", error)) from None
        except Exception as error:
            raise Stop(
                fail(
                    "provider",
                    f"{gpu.provider} broke with {type(error).__name__}",
                    "Report it to whoever wrote the provider.",
                )
            ) from None
        yield ok("provider", f"{gpu.provider} says the instance is {seen[0].state.value}")

    return [provider, lambda: node_checks(deployment, name, seen[0])]
