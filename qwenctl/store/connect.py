"""Connect to Redis: by URL, by Sentinel, or to the embedded server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError, StoreAuthError, StoreUnavailable
from qwenctl.lib.private_file import read_secret
from qwenctl.store import embedded

_REFUSALS = (redis.exceptions.OutOfMemoryError, redis.exceptions.ClusterError)
_REFUSAL_CODES = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")
"""Codes of a full disk or memory, or an incomplete cluster: it answers, but cannot be used."""


@contextlib.contextmanager
def explained_errors(client: redis.Redis | str) -> Iterator[None]:
    """Turn Redis's errors into ours, which name the client or its place."""
    try:
        yield
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise StoreAuthError(
            f"Redis at {place_of(client)} refuses the password or user: {error}; "
            "check redis_url, redis_password_file"
        ) from None
    except (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.BusyLoadingError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.RedisClusterException,  # not a RedisError: no node of the cluster answers
        OSError,
    ) as error:
        text = str(error)
        if "NOAUTH" in text or "WRONGPASS" in text or "invalid username-password" in text:
            raise StoreAuthError(
                f"Redis at {place_of(client)} wants another password; check redis_url, "
                "redis_password_file"
            ) from None
        raise StoreUnavailable(
            f"Redis at {place_of(client)} cannot be reached: {text.rstrip('.')}; check redis_url and "
            "that the server runs"
        ) from None
    except redis.exceptions.ResponseError as error:
        if not isinstance(error, _REFUSALS) and not str(error).startswith(_REFUSAL_CODES):
            raise  # a mistake in a script of ours
        raise StoreUnavailable(f"Redis at {place_of(client)} refuses to work: {error}") from None


def place_of(client: redis.Redis | str) -> str:
    """Return where the server is, without password."""
    if isinstance(client, str):
        return client
    pool: Any = getattr(client, "connection_pool", None)
    options = getattr(pool, "connection_kwargs", {})
    if "path" in options:
        return str(options["path"])
    if hasattr(pool, "service_name"):
        return f"sentinel service {pool.service_name}"
    return f"{options.get('host', '?')}:{options.get('port', '?')}"


def connect(config: Config) -> redis.Redis:
    """Return a client for the configured Redis, or for our embedded server.

    Only a client of a cluster connects at once.
    ``redis+sentinel://[:password@]host:port,host:port/service[/db]`` finds the master by Sentinel,
    ``redis+cluster://host:port`` a Redis Cluster.

    Raises:
        ConfigError: a URL that cannot be used, or an unreadable password file.
        StoreUnavailable, StoreAuthError: a Redis Cluster cannot be reached or refuses the
            password.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": 5.0,
        "socket_connect_timeout": 3.0,
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 2),
    }
    if config.redis_password_file:
        options["password"] = read_secret(
            Path(config.redis_password_file).expanduser(), "redis_password_file"
        )
    if not config.redis_url:
        return redis.Redis.from_pool(embedded.pool(config.state_path, **options))
    scheme = config.redis_url.partition("://")[0].lower()  # `Config` accepts known schemes only
    try:
        url = urlsplit(config.redis_url)
        if scheme == "redis+sentinel":
            return _sentinel(url.netloc, url.path, options)
        if scheme == "redis+cluster":
            options.pop("retry")
            plain = urlunsplit(url._replace(scheme="redis"))
            with explained_errors(f"{url.hostname}:{url.port}"):  # it reads the nodes at once
                return cast(redis.Redis, redis.RedisCluster.from_url(plain, **options))
        return redis.Redis.from_url(config.redis_url, **options)
    except (ValueError, redis.exceptions.RedisError):
        # Not the error's text: it may quote a part of the password.
        raise ConfigError(
            f"redis_url ({scheme}://…) cannot be used: characters such as / @ : # in a "
            "password must be percent-encoded, or put it into redis_password_file"
        ) from None


def _sentinel(netloc: str, path: str, options: dict[str, Any]) -> redis.Redis:
    from redis.sentinel import Sentinel

    login, _, hosts = netloc.rpartition("@")
    if login:
        user, _, password = login.partition(":")
        options = {**options, "username": unquote(user) or None, "password": unquote(password)}
    places = []
    for host in hosts.split(","):
        name, _, port = host.partition(":")
        places.append((name, int(port or 26379)))
    service, _, database = path.strip("/").partition("/")
    # A Sentinel that does not answer is skipped, not tried again.
    asking = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
    sentinel: Any = cast(Any, Sentinel)(places, sentinel_kwargs=asking)
    return cast(
        redis.Redis, sentinel.master_for(service or "mymaster", db=int(database or 0), **options)
    )
