"""Checks of the doctor for what all GPUs share: settings, store, ports, URLs, secrets."""

from __future__ import annotations

import json
import shlex
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from qwenctl.admin.validation import settings_checks, told_by, unresolved
from qwenctl.clouds.admin import admin_of
from qwenctl.clouds.base import Observation
from qwenctl.clouds.check_steps import CLOCK_WARN, rough_duration
from qwenctl.config.deployment import Config
from qwenctl.config.listen import listening_socket
from qwenctl.control import left_on
from qwenctl.core.address import NodeAddress
from qwenctl.core.claims import REFRESH_SECONDS, TAG, Claim
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.extras import lacking
from qwenctl.lib.findings import Check, Finding, fail, ok, warn
from qwenctl.lib.http_probe import IDENTITY, PATIENCE, brief_reason, read_bounded
from qwenctl.lib.settings_file import tomllib
from qwenctl.lib.settings_types import is_loopback
from qwenctl.lib.version import full_version
from qwenctl.store.deployment_id import deployment_id
from qwenctl.store.store import Store, open_store

MAX_HEALTH = 4096
"""The longest answer to a health check, in bytes."""


class Deployment:
    """The configuration and, once it answered, the store, which all GPUs share."""

    def __init__(self, config: Config, gpus: Sequence[str]) -> None:
        self.config = config
        self.gpus = gpus
        self._store: Store | None = None

    def checks(self) -> list[Check]:
        common = [self.configuration, self.installed, self.redis, self.former]
        common += [self.access, self.listening]
        agents = any(self.config.gpu[name].agent for name in self.gpus)
        return [*common, self.node_secret, self.node_urls] if agents else common

    @property
    def store(self) -> Store | None:
        """The store, once it has answered."""
        return self._store

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

    def installed(self) -> Iterable[Finding]:
        """Check that the packages that the proxy needs are there."""
        if lack := lacking("proxy"):
            found, _, command = lack.partition(": ")
            yield fail("proxy", found, f"Run `{command}`.")

    def access(self) -> Iterable[Finding]:
        """Check passwords, keys and ways to sign in, as `serve` does."""
        own = ("listen", "node secret")  # have checks of their own
        wrong = False
        for name, check in settings_checks(self.config):
            try:
                if name not in own:
                    check()
            except ConfigError as error:
                wrong = True
                found, _, advice = str(error).partition("; ")
                yield fail(name, found, _sentence(advice or "Correct it in the settings."))
        if not wrong:
            on = self.config.access.mode == "password"
            yield ok("access", "by password or key" if on else "everybody who reaches the proxy")

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
            try:
                config.usable_node_secret()
            except ConfigError as error:
                found, _, advice = str(error).partition("; ")
                yield fail("node secret", found, _sentence(advice or "Make a longer one."))
                return
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
        """Check that `serve` can listen where it is told to, or does so already."""
        try:
            host, port = self.config.check_listen()
            if _is_proxy(host, port):
                return  # it has the port
            listening_socket(host, port).close()
        except ConfigError as error:
            found, _, advice = str(error).partition("; ")
            yield fail("listen", found, _sentence(advice or "Correct proxy.listen."))

    @property
    def _loopback_only(self) -> bool:
        """Whether only this machine can reach the proxy, with no server before it."""
        proxy = self.config.proxy
        host = proxy.listen.rpartition(":")[0]
        return is_loopback(host) and not proxy.public_url and not proxy.trusted_proxies

    @property
    def _told(self) -> str:
        return f"{told_by(self.config)} to reach"

    def node_urls(self) -> Iterable[Finding]:
        """Check that the proxy answers at the nodes' URLs, as seen from this machine."""
        for url in self.config.node_urls:
            host = urlsplit(url).hostname or ""
            if self.in_cloud and (is_loopback(host) or host in ("0.0.0.0", "::")):
                yield fail(
                    "node url",
                    f"{self._told} {url}, which means the node itself, seen from an instance in the "
                    "cloud",
                    "Set proxy.node_urls to an address of the proxy in the nodes' network, such as "
                    '["http://10.0.0.5:8080"], and proxy.listen to an address that they can reach.',
                )
                continue
            try:
                ours, status = _ask_health(url)
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
                if self.in_cloud and unresolved([host]):
                    yield warn(
                        "node url",
                        f"{self._told} {url}, but {host} does not resolve here",
                        "If it does not at the nodes either, no agent is ever heard: correct "
                        "proxy.node_urls (without it nodes are told proxy.public_url).",
                    )
                    continue
                yield warn(
                    "node url",
                    f"no proxy answers at {url} from here ({brief_reason(error)})",
                    "Start it with `qwenctl serve`; if it runs, check proxy.listen, the firewall and "
                    "proxy.node_urls.",
                )
                continue
            if ours:
                yield ok("node url", f"the proxy answers at {url}")
            else:
                yield fail(
                    "node url",
                    f"something else answers at {url} (HTTP {status})",
                    "proxy.node_urls must lead to `qwenctl serve`, with the path /_qwenctl/.",
                )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _ask_health(url: str) -> tuple[bool, int]:
    """Return whether a proxy of ours answers at the URL, and the answer's status."""
    # Without this user's web proxy: nodes have none.
    with requests.Session() as session:
        session.trust_env = False
        health = f"{url}/_qwenctl/healthz"
        with session.get(health, timeout=PATIENCE, stream=True, headers=IDENTITY) as answer:
            body = read_bounded(answer, MAX_HEALTH, 2 * PATIENCE)
    return answer.ok and _is_ours(body), answer.status_code


def _is_proxy(host: str, port: int) -> bool:
    """Return whether a proxy of ours listens there."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        return _ask_health(NodeAddress(here, port).url)[0]
    except (requests.RequestException, HTTPError):
        return False


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
