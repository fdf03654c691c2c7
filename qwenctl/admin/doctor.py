"""Check everything that the first wake needs, for `qwenctl doctor`.

Each check looks at one thing and changes nothing. The checks of a cloud are in its folder.
"""

from __future__ import annotations

import json
import shlex
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from qwenctl.clouds.admin import admin_of
from qwenctl.clouds.base import Observation, ProviderError
from qwenctl.clouds.check_steps import CLOCK_WARN, rough_duration
from qwenctl.clouds.registry import part
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.providers import context_of, make_provider
from qwenctl.config.read_schedules import schedules
from qwenctl.control import left_on
from qwenctl.core import refusals
from qwenctl.core.claims import REFRESH_SECONDS, TAG, Claim
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.versions import skew
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.findings import Check, Finding, Stop, fail, ok, refusal, run_checks, warn
from qwenctl.lib.http_probe import IDENTITY, PATIENCE, brief_reason, read_bounded
from qwenctl.lib.settings_file import tomllib
from qwenctl.lib.settings_types import is_loopback
from qwenctl.lib.version import full_version
from qwenctl.store.deployment_id import deployment_id
from qwenctl.store.store import Store, open_store

MAX_HEALTH = 4096
"""The longest answer to a health check, in bytes."""


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


class Deployment:
    """The configuration and, once it answered, the store, which all GPUs share."""

    def __init__(self, config: Config, gpus: Sequence[str]) -> None:
        self.config = config
        self.gpus = gpus
        self._store: Store | None = None

    def checks(self) -> list[Check]:
        common = [self.configuration, self.redis, self.former, self.listening]
        agents = any(self.config.gpu[name].agent for name in self.gpus)
        return [*common, self.node_secret, self.node_urls] if agents else common

    @property
    def in_cloud(self) -> bool:
        """Whether agents reach the proxy from a cloud."""
        gpus = [self.config.gpu[name] for name in self.gpus]
        return any(gpu.agent and not gpu.settings.on_this_machine for gpu in gpus)

    def snapshot(self, gpu: str) -> Snapshot | None:
        """Return the store's snapshot of a GPU; None if the store does not answer."""
        try:
            return self._store.snapshot(gpu) if self._store is not None else None
        except StoreUnavailable:
            return None

    def claim(self, gpu: str, seen: Observation) -> Iterable[Finding]:
        """Check that no other deployment has the instance, and that ours may claim it."""
        claim = Claim.decode(seen.claim)
        if self._store is None:
            return
        if claim is None:
            yield from self._unclaimed(gpu, seen)
            return
        own = deployment_id(self._store, self.config.state_path)
        now = time.time()
        if claim.owner == own and now - claim.seen > 2 * REFRESH_SECONDS:
            yield from self._unclaimed(gpu, seen)
        elif claim.owner == own:
            yield ok("claim", "the instance is this deployment's")
        elif claim.holds(now, off=seen.state.gone, name=f"{self.config.deployment}/{gpu}"):
            found, _, advice = claim.words(seen.instance_id, now).partition("; ")
            yield fail("claim", found, _sentence(advice))

    def _unclaimed(self, name: str, seen: Observation) -> Iterable[Finding]:
        """Tell of a running proxy that has not tagged the instance, or not renewed the tag."""
        snapshot = self.snapshot(name)
        candidates = self.config.gpu[name].candidates()
        clouds = any(admin_of(gpu.provider) for _, gpu in candidates)
        if clouds and snapshot is not None and snapshot.leader and not seen.state.absent:
            yield warn(
                "claim",
                f"a proxy looks after the instance, but has not tagged it ({TAG}): it may not",
                "Allow ecs:TagResources or ec2:CreateTags, as `qwenctl permissions` prints; until "
                "then another deployment that names the instance is not kept from stopping it.",
            )

    def configuration(self) -> Iterable[Finding]:
        names = ", ".join(self.gpus)
        yield ok("qwenctl", full_version())
        yield ok("config", f"{self.config.source or 'defaults and QWENCTL_*'}: {names}")

    def redis(self) -> Iterable[Finding]:
        try:
            self._store = open_store(self.config)
            before = time.time()
            theirs = self._store.snapshot(self.gpus[0]).now if self.gpus else before
            after = time.time()
            self._store.check()
        except (ConfigError, StoreUnavailable) as error:
            found, _, advice = str(error).partition("; ")
            yield fail("redis", found, _sentence(advice or "Check redis_url."))
            return
        kind = "embedded server" if not self.config.redis_url else f"Redis at {self._store.place}"
        yield ok("redis", f"{kind} answers")
        # Bracketed by our clock, so that network delay does not count.
        apart = max(before - theirs, theirs - after, 0.0)
        if apart < CLOCK_WARN:
            yield ok("redis clock", f"agrees with ours to {max(apart, after - before):.1f} s")
        else:
            yield warn(
                "redis clock",
                f"{rough_duration(apart)} apart from ours",
                "qwenctl counts by Redis' clock, but times are shown by ours: set both by NTP.",
            )

    def former(self) -> Iterable[Finding]:
        """Check that nothing is on that was started by settings of before."""
        if self._store is not None:
            yield from left_on.findings(self.config, self._store)

    def node_secret(self) -> Iterable[Finding]:
        config = self.config
        if config.node_secret.get_secret_value():
            if config.source and "node_secret" in _keys_of(config.source):
                yield warn(
                    "node secret",
                    "in clear in the config file",
                    "Put it into a file that only the proxy can read, and name that in "
                    "node_secret_file.",
                )
            else:
                yield ok("node secret", "from QWENCTL_NODE_SECRET")
            return
        own = config.state_path / "node.secret"
        path = Path(config.node_secret_file).expanduser() if config.node_secret_file else own
        if path == own and not own.exists():
            yield ok("node secret", f"will be made at need in {own}")
            return
        try:
            config.usable_node_secret()
            others = stat.S_IMODE(path.stat().st_mode) & 0o077
        except (ConfigError, OSError) as error:
            yield fail("node secret", str(error), "Nodes cannot prove who they are without it.")
            return
        if others:
            command = f"chmod 600 {shlex.quote(str(path))}"
            yield warn("node secret", f"others can read {path}", f"Run `{command}`.")
        else:
            yield ok("node secret", f"in {path}")

    def listening(self) -> Iterable[Finding]:
        try:
            self.config.check_listen()
        except ConfigError as error:
            found, _, advice = str(error).partition("; ")
            yield fail("listen", found, _sentence(advice or "Correct proxy.listen."))

    @property
    def _loopback_only(self) -> bool:
        """Whether only this machine can reach the proxy, with no server before it."""
        proxy = self.config.proxy
        host = proxy.listen.rpartition(":")[0]
        return is_loopback(host) and not proxy.public_url and not proxy.trusted_proxies

    def node_urls(self) -> Iterable[Finding]:
        """Check that the proxy answers at the nodes' URLs, as seen from this machine."""
        for url in self.config.node_urls:
            host = urlsplit(url).hostname or ""
            if self.in_cloud and (is_loopback(host) or host in ("0.0.0.0", "::")):
                yield fail(
                    "node url",
                    f"{url} means the node itself, seen from an instance in the cloud",
                    "Set proxy.node_urls to an address of the proxy in the nodes' network, such as "
                    '["http://10.0.0.5:8080"], and proxy.listen to an address that they can reach.',
                )
                continue
            try:
                # Without this user's web proxy: nodes have none.
                with requests.Session() as session:
                    session.trust_env = False
                    health = f"{url}/_qwenctl/healthz"
                    with session.get(
                        health, timeout=PATIENCE, stream=True, headers=IDENTITY
                    ) as answer:
                        body = read_bounded(answer, MAX_HEALTH, 2 * PATIENCE)
            except (requests.RequestException, HTTPError) as error:
                if self.in_cloud and url.startswith("http://") and self._loopback_only:
                    yield warn(
                        "node url",
                        f"no proxy answers at {url}: proxy.listen is {self.config.proxy.listen}, "
                        "which no other machine can reach",
                        "Turn access control on (`qwenctl access hash-password`) and set "
                        "proxy.listen to that address, or put a web server there that forwards to "
                        "it and name that in proxy.trusted_proxies.",
                    )
                    continue
                yield warn(
                    "node url",
                    f"no proxy answers at {url} from here ({brief_reason(error)})",
                    "Start it with `qwenctl serve`; if it runs, check proxy.listen, the firewall and "
                    "proxy.node_urls.",
                )
                continue
            if answer.ok and _is_ours(body):
                yield ok("node url", f"the proxy answers at {url}")
            else:
                yield fail(
                    "node url",
                    f"something else answers at {url} (HTTP {answer.status_code})",
                    "proxy.node_urls must lead to `qwenctl serve`, with the path /_qwenctl/.",
                )


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
    return [services if gpu.agent else agentless, *planned]


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


def node_checks(deployment: Deployment, name: str, seen: Observation) -> Iterable[Finding]:
    """Check address, port and agent of a running instance."""
    gpu = deployment.config.gpu[name]
    yield from deployment.claim(name, seen)
    if seen.state is not Observed.RUNNING:
        yield ok("node", f"the instance is {seen.state.value}: nothing to reach now")
        return
    address = gpu.address or seen.address
    snapshot = deployment.snapshot(name)
    hello = snapshot is not None and snapshot.node_view.hello
    if address and snapshot is not None:
        ours = hello and gpu.agent
        yield _reach(name, address, gpu.port, hello=ours, agent=gpu.agent)
    age = snapshot.node_view.heartbeat_age if snapshot is not None else None
    if snapshot is None:
        return
    if gpu.agent:
        yield from _versions(snapshot)
    if not gpu.agent:
        yield from _asked(gpu, snapshot, age)
        return
    if snapshot.phase is Phase.OFF:
        yield warn(
            "agent",
            "the instance runs, but qwenctl counts it as off and so hears no agent",
            "Start `qwenctl serve`, which takes over what it finds running, or run `qwenctl up`.",
        )
    elif not snapshot.leader and (not hello or age is None or age > gpu.timing.node_lost):
        yield warn(
            "agent",
            "the instance runs, but no proxy does that its agent could report to",
            "Start `qwenctl serve`.",
        )
    elif not hello or age is None:
        yield fail(
            "agent",
            "the instance runs, but its agent has said nothing",
            "See `journalctl -u qwenctl-node` on the node; `qwenctl provision` prints how it is "
            "installed, and proxy.node_urls is where it looks for the proxy.",
        )
    elif age > gpu.timing.node_lost:
        yield fail(
            "agent",
            f"silent for {rough_duration(age)}",
            "See `journalctl -u qwenctl-node` on the node, and whether it still reaches "
            f"{deployment.config.node_urls[0]}.",
        )
    else:
        yield ok("agent", f"{snapshot.node_view.state or 'there'}, heard {age:.0f} s ago")


def _versions(snapshot: Snapshot) -> Iterable[Finding]:
    """Check that agent and proxy understand each other, by what the proxy has noted."""
    if refused := refusals.refusal(snapshot):
        yield fail("agent", refused.text, refused.advice)
    found = skew(snapshot)
    if found is not None:
        say = fail if found.hinders else warn
        yield say("versions", str(found), f"To upgrade, {found.upgrade}.")
    elif version := snapshot.node.get("proxy_version"):
        yield ok("versions", f"agent and proxy are {version}")


def _asked(gpu: GpuConfig, snapshot: Snapshot, age: float | None) -> Iterable[Finding]:
    """Check the readiness probes of an instance without an agent."""
    view = snapshot.node_view
    path = gpu.service[0].readiness.path if gpu.service else "/"
    if not snapshot.leader:
        yield warn(
            "readiness",
            "the instance runs, but nobody asks its WebUI, and nobody stops it",
            "Start `qwenctl serve`, which takes over what it finds running, or run `qwenctl down`.",
        )
    elif age is not None and view.state == "ready" and age <= 4 * gpu.timing.heartbeat:
        yield ok("readiness", f"GET {path} was answered {age:.0f} s ago")
    else:
        yield warn(
            "readiness",
            f"GET {path} on port {gpu.port} is not answered as it should: "
            f"{view.error or 'no answer'}",
            "It may still be loading. If not, log in to the instance: the WebUI must start with it "
            "and listen on all addresses; or correct service.readiness.path.",
        )


def _reach(name: str, host: str, port: int, *, hello: bool, agent: bool) -> Finding:
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except ConnectionRefusedError:
        if not agent:
            return warn(
                "node",
                f"{host} answers, but nothing listens on port {port}",
                "The WebUI may still be loading. It must start by itself with the instance, and "
                "listen on all addresses, not only on 127.0.0.1.",
            )
        if not hello:
            return warn(
                "node",
                f"{host} answers, but nothing listens on port {port} yet",
                "The agent starts the service; see the check of the agent.",
            )
        return warn(
            "node",
            f"nothing listens on port {port} of {host}",
            f"The service may still be loading: see `qwenctl logs --gpu {name}`. It must listen on "
            "all addresses, not only on 127.0.0.1.",
        )
    except OSError as error:
        return fail(
            "node",
            f"port {port} of {host} cannot be reached from here ({brief_reason(error)})",
            "Allow it in the security group (`qwenctl provision --apply`), or choose another "
            "address: the private one works only within the same network.",
        )
    return ok("node", f"port {port} of {host} can be reached")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _is_ours(body: bytes) -> bool:
    try:
        return "version" in json.loads(body)
    except (ValueError, TypeError):
        return False


def _keys_of(path: str) -> set[str]:
    """Return the top-level keys of the file."""
    try:
        return set(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()
