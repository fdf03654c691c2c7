"""The whole configuration: `Config`, with access, proxy and one `GpuConfig` a GPU."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from qwenctl.config.gpu import GpuConfig
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import (
    GOOD_SECRET,
    LEAST_SECRET,
    NEW_SECRET,
    exposed,
    long_enough,
    read_regular,
    read_secret,
)
from qwenctl.lib.settings_types import (
    NAME,
    Duration,
    FilePath,
    Table,
    is_loopback,
    web_origin,
    web_url,
)


class ApiKey(Table):
    """One API client."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Who uses the key; shown in `status` and `why`."""
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    """``sha256:`` and the hex digest of the key, as `qwenctl access new-key` prints it."""


class AccessConfig(Table):
    """Who may use and wake the GPU."""

    mode: Literal["none", "password"] = "none"
    """``none``: everybody who reaches the proxy (which then listens on loopback only);
    ``password``: one shared password for browsers, API keys for clients, and `authenticators`."""
    password_hash: str = Field("", pattern=r"^(\$argon2id\$.+)?$", repr=False)
    """The argon2id hash that `qwenctl access hash-password` prints."""
    keys: tuple[ApiKey, ...] = ()
    """API keys, sent as ``Authorization: Bearer qk_…`` or ``X-API-Key``."""
    session: Duration = 14 * 86400.0
    """How long a browser stays signed in."""
    authenticators: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Installed third-party ways to sign in, each with its own settings, such as
    `[access.authenticators.NAME]`; with them the password may be left out. See CONTRIBUTING.md."""

    @field_validator("password_hash", mode="before")
    @classmethod
    def _password_hash(cls, value: object) -> object:
        if isinstance(value, str) and value and not value.startswith("$argon2id$"):
            raise ValueError("not the hash of a password; `qwenctl access hash-password` makes it")
        return value


class ProxyConfig(Table):
    """The always-on proxy."""

    listen: str = "127.0.0.1:8080"
    """Address and port to listen on."""
    public_url: str = ""
    """Where people and nodes reach the proxy; default: http:// and the listen address."""
    node_urls: tuple[str, ...] = ()
    """Where nodes reach the proxies, one URL a replica, so that a node finds another one when one
    dies; none: `public_url`."""
    allow_anonymous: bool = False
    """Listen on other than loopback addresses although access control is off."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose X-Forwarded-* or Forwarded headers are believed."""
    gate_headers: Literal["x-original", "x-forwarded"] = "x-original"
    """In which headers another data plane tells `/_qwenctl/gate` of the request: X-Original-Method
    and -URI (nginx, see docs/reverse-proxies.md) or X-Forwarded-Method and -Uri (Caddy, Traefik)."""
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may use the GPU from a browser, such as ``https://chat.example.com``; ``*``:
    pages of every site, without cookies and with an API key. None: as the node answers when it is on."""
    hold: Duration = 600.0
    """How long a request of an API client is held while the GPU wakes."""
    max_held: int = Field(2000, ge=0)
    """How many requests may be held at once; further ones get 503 with Retry-After."""
    shutdown_grace: Duration = 60.0
    """How long requests in flight may go on after SIGTERM; the port is free at once."""

    @field_validator("public_url")
    @classmethod
    def _public_url(cls, value: str) -> str:
        return value and web_url(value)

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(origin if origin == "*" else web_origin(origin) for origin in value)

    @field_validator("node_urls")
    @classmethod
    def _node_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            try:
                web_url(url)
            except ValueError as error:
                raise ValueError(f"{url!r}: {error}") from None
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise ValueError(
                    f"{text!r} is neither an address nor a network such as 10.0.0.0/8"
                ) from None
        return value


class UnknownTier(LookupError):
    """No GPU of the host has the tier that was asked for."""


class Config(Table):
    """The whole file."""

    deployment: str = Field("default", pattern=NAME)
    """Keeps several deployments apart that share one Redis."""
    state_dir: FilePath = ""
    """Where local state lives; default: $XDG_STATE_HOME/qwenctl. A relative path starts at this
    file, as for the files below; one in QWENCTL_STATE_DIR, at the working directory."""
    redis_url: str = Field("", repr=False)
    """redis://, rediss://, unix:// or redis+sentinel://; empty: an embedded server of our own."""
    redis_password_file: FilePath = ""
    """A file with the Redis password, if it is not in the URL."""
    node_secret: SecretStr = SecretStr("")
    """The secret that nodes sign with; better in `node_secret_file` or QWENCTL_NODE_SECRET."""
    node_secret_file: FilePath = ""
    """A file with the node secret; default: ``node.secret`` in the state directory, made at need."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of the pages; ``auto``: what the browser asks for."""
    proxy: ProxyConfig = Field({}, validate_default=True)
    access: AccessConfig = Field({}, validate_default=True)
    gpu: dict[Annotated[str, Field(pattern=NAME)], GpuConfig] = Field(default_factory=dict)
    """One table per GPU: ``[gpu.NAME]``."""

    _source: str = ""

    @field_validator("redis_url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        before, found, _ = value.partition("://")
        scheme = before.lower() if found else ""
        if value and scheme not in ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"):
            # Text without a scheme is not quoted: it may be a password.
            raise ValueError(
                f"unknown scheme {scheme!r}; use redis://, rediss://, unix://, redis+sentinel:// "
                "or redis+cluster://"
            )
        return value

    @property
    def source(self) -> str:
        """Path of the file; empty: there is none."""
        return self._source

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir).expanduser() if self.state_dir else state_dir()

    @property
    def url(self) -> str:
        """URL at which people and nodes reach the proxy, without a slash at the end."""
        return (self.proxy.public_url or f"http://{self.proxy.listen}").rstrip("/")

    def url_of(self, name: str) -> str:
        """URL at which visitors find a GPU: with the host name that its settings give it."""
        gpu, parts = self.gpu.get(name), urlsplit(self.url)
        host = (parts.hostname or "").lower()
        if gpu is not None and gpu.hosts:
            if host in (own.lower() for own in gpu.hosts):
                return self.url
            host = gpu.hosts[0]
        elif host not in ("0.0.0.0", "::"):
            return self.url
        else:  # all addresses of this machine: no address to go to
            host = {"::": "::1"}.get(host, "127.0.0.1")
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"

    def way_to(self, name: str) -> str:
        """Return what visitors of `url_of` have to do to reach the GPU; empty: nothing."""
        if name in self.unvisited:
            return "visitors are sent to another GPU there: give it hosts or a tier"
        gpu = self.gpu.get(name)
        host = (urlsplit(self.url_of(name)).hostname or "").lower()
        if gpu is None or not gpu.tier or self.gpus_at(host)[:1] == (name,):
            return ""
        return f"choose {gpu.tier} at /_qwenctl/tier"

    @property
    def node_urls(self) -> tuple[str, ...]:
        """URLs at which nodes reach the proxies, without slashes at the end."""
        return tuple(url.rstrip("/") for url in self.proxy.node_urls) or (self.url,)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        self._check_tiers()
        self._check_instances()
        self._check_local_ports()
        if self.access.mode == "none" and self.access.authenticators:
            raise ValueError(
                'access.authenticators needs access.mode = "password": with "none" everybody may '
                "use the GPU"
            )
        if (
            self.access.mode == "password"
            and not self.access.password_hash
            and not self.access.authenticators
        ):
            raise ValueError(
                'access.mode = "password" needs access.password_hash: run `qwenctl access hash-password`'
            )
        return self

    def _check_tiers(self) -> None:
        """Refuse GPUs of the same host with the same tier.

        Without tiers, of the GPUs that name no host only the first gets visitors; see `unvisited`.
        """
        claimed: dict[str, list[str]] = {}
        for name, gpu in self.gpu.items():
            for host in dict.fromkeys(host.lower() for host in gpu.hosts):
                claimed.setdefault(host, []).append(name)
        free = [name for name, gpu in self.gpu.items() if not gpu.hosts]
        if any(self.gpu[name].tier for name in free):
            claimed[""] = free
        for host, names in claimed.items():
            for one, other in combinations(names, 2):
                tiers = {self.gpu[one].tier, self.gpu[other].tier}
                if len(tiers) < 2 or "" in tiers:
                    what = f"claim host {host}" if host else "serve every other host"
                    raise ValueError(
                        f"gpu.{one} and gpu.{other} both {what}; give each a tier of its own, or "
                        "other hosts"
                    )

    def _check_instances(self) -> None:
        """Refuse an instance of two GPUs: each would stop it under the other's work."""
        owners: dict[str, str] = {}
        for name, gpu in self.gpu.items():
            for _, table in gpu.candidates():
                instance = table.settings.instance
                owner = owners.setdefault(instance, name) if instance else name
                if owner != name:
                    raise ValueError(
                        f"gpu.{owner} and gpu.{name} both have the instance {instance}; "
                        "each would stop it under the other's work"
                    )

    def _check_local_ports(self) -> None:
        """Refuse a port of this machine for two services, or for a service and the proxy."""
        owners: dict[int, str] = {}
        host, _, port = self.proxy.listen.rpartition(":")
        shared = is_loopback(host) or host in ("0.0.0.0", "[::]")  # another address is its own
        for name, gpu in self.gpu.items():
            for service in gpu.service if gpu.settings.on_this_machine else ():
                if shared and port == str(service.port):
                    raise ValueError(
                        f"proxy.listen and gpu.{name}'s service {service.name} both have port "
                        f"{port} of this machine; give each a port of its own"
                    )
                owner = owners.setdefault(service.port, name)
                if owner != name:
                    raise ValueError(
                        f"gpu.{owner} and gpu.{name} both have a service on port {service.port} of "
                        "this machine; give each a port of its own"
                    )

    @property
    def unvisited(self) -> tuple[str, ...]:
        """GPUs that no visitor is sent to: without hosts and tier, and not the first of these.

        The command line and `?gpu=` reach them.
        """
        free = tuple(name for name, gpu in self.gpu.items() if not gpu.hosts)
        return tuple(name for name in free if name not in self._gpus_of_other_hosts)

    def gpu_name(self, wanted: str | None) -> str:
        """Return the GPU that ``--gpu`` names, or the only GPU without it.

        Raises:
            ConfigError: no such GPU, or none given where there are several.
        """
        names = list(self.gpu)
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in self.gpu:
            return str(wanted)
        if not names:
            raise ConfigError("no GPU is configured: add a [gpu.NAME] table, or run `qwenctl init`")
        known = ", ".join(names)
        if wanted is None:
            raise ConfigError(f"say which GPU with --gpu; configured: {known}")
        raise ConfigError(f"no GPU named {wanted!r}; configured: {known}")

    @cached_property
    def _gpus_by_host(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name, gpu in self.gpu.items():
            for host in dict.fromkeys(host.lower() for host in gpu.hosts):
                found[host] = (*found.get(host, ()), name)
        return found

    @cached_property
    def _gpus_of_other_hosts(self) -> tuple[str, ...]:
        free = tuple(name for name, gpu in self.gpu.items() if not gpu.hosts)
        if free:
            return free if self.gpu[free[0]].tier else free[:1]
        first = next(iter(self.gpu.values()), None)
        return self._gpus_by_host[first.hosts[0].lower()] if first else ()

    def gpus_named(self, host: str) -> tuple[str, ...]:
        """Return the GPUs that name this host (lower case) in their settings."""
        return self._gpus_by_host.get(host, ())

    def gpus_at(self, host: str) -> tuple[str, ...]:
        """Return the GPUs for requests to this host name (lower case), the default first.

        They are those that name it, else those that name none, else the first and those of its
        tiers.
        """
        return self._gpus_by_host.get(host, self._gpus_of_other_hosts)

    def choose_gpu(
        self, names: Sequence[str], *, tier: str = "", model: str = "", usual_tier: str = ""
    ) -> str:
        """Choose among the GPUs of a host (`gpus_at`): by tier, API model or usual tier.

        Without any of these, or if no GPU has the model or usual tier, it is the first.

        Raises:
            UnknownTier: none of them has that ``tier``.
        """
        if tier:
            for name in names:
                if self.gpu[name].tier == tier:
                    return name
            known = ", ".join(self.gpu[name].tier for name in names)
            raise UnknownTier(f"there is no tier {tier[:40]!r} here; known: {known}")
        if model:
            for name in names:
                if model in self.gpu[name].models:
                    return name
            for name in names:
                if any(fnmatchcase(model, pattern) for pattern in self.gpu[name].models):
                    return name
        return next((n for n in names if usual_tier and self.gpu[n].tier == usual_tier), names[0])

    def check_listen(self) -> tuple[str, int]:
        """Return host and port of ``proxy.listen``.

        Raises:
            ConfigError: not an address, or open to others without access control.
        """
        host, port = split_listen(self.proxy.listen)
        if self.access.mode == "none" and not (self.proxy.allow_anonymous or is_loopback(host)):
            if not _resolves(host):
                raise ConfigError(f"proxy.listen: {no_address(host)}")
            raise ConfigError(
                f"proxy.listen: {host} can be reached by others and access control is off; set "
                'access.mode = "password", or proxy.allow_anonymous = true if that is what you want'
            )
        return host, port

    def read_node_secret(self) -> str:
        """Read the node secret; without a setting of it, make it in the state directory.

        Raises:
            ConfigError: the file is missing, empty, or cannot be written.
        """
        if given := self.node_secret.get_secret_value():
            return given
        if self.node_secret_file:
            return read_secret(Path(self.node_secret_file).expanduser(), "node_secret_file")
        return own_secret(self.state_path / "node.secret")

    def usable_node_secret(self) -> str:
        """Read the node secret, which must not be guessed.

        Raises:
            ConfigError: as `read_node_secret`, or it is too short.
        """
        secret = self.read_node_secret()
        return long_enough(secret, "node_secret_file" if self._secret_in_file else "node_secret")

    @property
    def _secret_in_file(self) -> bool:
        return not self.node_secret.get_secret_value()

    def exposures(self) -> Iterator[str]:
        """Yield what is wrong with how secrets are kept, a sentence each, with what ends it."""
        secret = self.node_secret.get_secret_value()
        if secret or self.node_secret_file:
            try:
                secret = self.read_node_secret()
            except ConfigError:
                secret = ""
            if LEAST_SECRET <= len(secret) < GOOD_SECRET:
                yield f"the node secret is shorter than {GOOD_SECRET} characters; {NEW_SECRET}"
        files = [self.node_secret_file, self.redis_password_file]
        holds = self.node_secret.get_secret_value() or "@" in self.redis_url
        if self.source and holds and _from_file(Path(self.source)):
            files.append(self.source)
        for file in filter(None, files):
            if who := exposed(Path(file).expanduser()):
                yield f"secrets are open: {who}"


def split_listen(text: str) -> tuple[str, int]:
    """Split ``address:port``; an IPv6 address is in brackets.

    Raises:
        ConfigError: it is none.
    """
    if "://" in text:
        raise ConfigError(
            "proxy.listen: write address:port, such as 127.0.0.1:8080, without "
            f"{text.partition('://')[0]}://"
        )
    host, _, port = text.rpartition(":")
    if ":" in host and not re.fullmatch(r"\[.*\]", host):
        raise ConfigError(
            f"proxy.listen: {text!r} is not address:port; an IPv6 address is in brackets, such as "
            "[::1]:8080"
        )
    host = host.strip("[]")
    usable = re.fullmatch(r"[^\s/@?#\[\]]+", host) and re.fullmatch(r"[0-9]{1,5}", port)
    if not usable or int(port) > 65535:
        raise ConfigError(f"proxy.listen: {text!r} is not address:port, such as 127.0.0.1:8080")
    return host, int(port)


def no_address(host: str) -> str:
    """Return that a host name has no address, with what to do."""
    return (
        f"this machine finds no address for {host!r}; name one of its own, such as 127.0.0.1 or "
        "0.0.0.0"
    )


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):  # UnicodeError: a label that no DNS name has
        return False


def _from_file(path: Path) -> bool:
    """Return whether the file itself has a secret, not the environment alone."""
    try:
        text = read_regular(path).decode("utf-8", "replace")
    except OSError:
        return False
    return bool(re.search(r"(?m)^\s*(node_secret|redis_url)\s*=", text))


def own_secret(path: Path) -> str:
    """Read a random secret from a file; make the file at the first call."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(fresh, path)  # of two processes the first wins, and both read it
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        if not path.exists():
            raise ConfigError(
                f"cannot write {path}: {error.strerror}; set state_dir or QWENCTL_STATE_DIR to a "
                "directory that you can write"
            ) from None
    return read_secret(path, "secret")


def state_dir() -> Path:
    """Return ``$XDG_STATE_HOME/qwenctl``, by default ``~/.local/state/qwenctl``."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "qwenctl"
