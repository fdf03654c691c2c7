"""Connect to Redis: by URL, by Sentinel, or to the embedded server."""

from __future__ import annotations

import contextlib
import re
import socket
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

_REFUSAL = re.compile(
    r"(?:^|[\s-])(?:READONLY|MASTERDOWN|LOADING|NOREPLICAS|MISCONF|OOM|BUSY|UNBLOCKED|CLUSTERDOWN|"
    r"TRYAGAIN) "
)
"""Codes of a server that answers but cannot be used: a demoted master, a full disk or memory, an
incomplete cluster. Redis before 7 has the code of a command in a script amid the text."""

_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)  # not every system has all of them
}
"""Probe a server that has vanished without a word, for connections that only wait for news."""

_REFUSALS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ClusterError,
)


@contextlib.contextmanager
def explained_errors(client: redis.Redis | str) -> Iterator[None]:
    """Turn Redis's errors into ours, which name the client or its place.

    A client whose server cannot be used drops its idle connections: behind the same name or TCP
    proxy there may be another master by now, which only a new connection reaches.
    """
    try:
        yield
    except StoreUnavailable:
        raise
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise StoreAuthError(
            f"Redis at {place_of(client)} refuses the password or user: {error}; "
            "check redis_url, redis_password_file"
        ) from None
    except (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.RedisClusterException,  # not a RedisError: no node of the cluster answers
        OSError,
    ) as error:
        text = str(error)
        if "NOAUTH" in text or "WRONGPASS" in text or "invalid username-password" in text:
            raise StoreAuthError(
                f"Redis at {place_of(client)} wants another password; check redis_url, "
                "redis_password_file"
            ) from None
        _drop_connections(client)
        raise StoreUnavailable(
            f"Redis at {place_of(client)} cannot be reached: {text.rstrip('.')}; check redis_url and "
            "that the server runs"
        ) from None
    except redis.exceptions.ResponseError as error:
        if not isinstance(error, _REFUSALS) and not _REFUSAL.search(str(error)):
            raise  # a mistake in a script of ours
        _drop_connections(client)
        if isinstance(error, redis.exceptions.ReadOnlyError) or "READONLY" in str(error):
            raise StoreUnavailable(
                f"Redis at {place_of(client)} is a read-only replica; the next try connects anew, and "
                "if this lasts, redis_url must lead to the master"
            ) from None
        raise StoreUnavailable(f"Redis at {place_of(client)} refuses to work: {error}") from None


def _drop_connections(client: redis.Redis | str) -> None:
    pool: Any = getattr(client, "connection_pool", None)  # a cluster's client reads its nodes anew
    if pool is not None:
        with contextlib.suppress(Exception):  # the server's error is what counts
            pool.disconnect(inuse_connections=False)


def connections_made(client: redis.Redis) -> int:
    """Return how many connections `connect`'s client has made so far."""
    pool: Any = getattr(client, "connection_pool", None)
    made = getattr(pool, "connection_kwargs", {}).get("redis_connect_func")
    return made.count if isinstance(made, _Connected) else 0


class _Connected:
    """Counts the connections of a client; redis-py calls it for each."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, connection: Any) -> None:
        if hasattr(connection, "on_connect_check_health"):  # redis-py 6 and later
            connection.on_connect_check_health(check_health=False)
        else:
            connection.on_connect()
        self.count += 1


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
        "redis_connect_func": _Connected(),
    }
    if config.redis_password_file:
        options["password"] = read_secret(
            Path(config.redis_password_file).expanduser(), "redis_password_file"
        )
    if not config.redis_url:
        return redis.Redis.from_pool(embedded.pool(config.state_path, **options))
    scheme = config.redis_url.partition("://")[0].lower()  # `Config` accepts known schemes only
    if scheme != "unix":
        options |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
    try:
        url = urlsplit(config.redis_url)
        if scheme == "redis+sentinel":
            return _sentinel(url.netloc, url.path, options)
        if scheme == "redis+cluster":
            del options["retry"], options["redis_connect_func"]  # it has its own
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
