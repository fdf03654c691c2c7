"""The only module that knows Redis: leases, blocks, phase, controller lock, history.

Each method is one atomic Lua script of the same name in ``qwenctl/lua/``. All times are seconds on
one clock: the server's, or the ``now`` handed to the constructor, which is how the whole control
plane runs under virtual time. Expiry is always compared, never left to a Redis TTL.

Every method raises `StoreUnavailable` when Redis cannot be reached.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from qwenctl import embedded
from qwenctl.config import Config, read_secret
from qwenctl.errors import ConfigError, StoreAuthError, StoreUnavailable
from qwenctl.lifecycle import TRANSITIONS, Failure, Guard, Move, NodeView, Phase
from qwenctl.plain_text import plain
from qwenctl.wire import MAX_SKEW_SECONDS, Command, Hello, Report

__all__ = [
    "Admission",
    "Event",
    "Lease",
    "Lock",
    "Outcome",
    "Snapshot",
    "Store",
    "Touch",
    "connect",
    "open_store",
]

log = logging.getLogger("qwenctl.store")

_LUA = Path(__file__).with_name("lua")
_KEYS = (
    "state",
    "leases",
    "blocks",
    "info",
    "lock",
    "node",
    "nonces",
    "events",
    "log",
    "commands",
)

NONCE_SECONDS = 2 * MAX_SKEW_SECONDS
"""How long a nonce is remembered: longer than any message with it can be fresh."""

ALIVE_SECONDS = 10.0
"""An agent that has been heard of so lately is there, however short its heartbeat."""


@dataclass(frozen=True)
class Lease:
    """One reason to be on (lease) or off (block)."""

    name: str
    expiry: float
    """``inf`` for a block without end."""
    reason: str = ""
    actor: str = ""
    since: float | None = None

    @property
    def kind(self) -> str:
        """``request``, ``inflight``, ``busy``, ``pin``, ``maintenance``, …"""
        return self.name.partition(":")[0]

    @property
    def is_work(self) -> bool:
        """Running work, which nothing but ``--now`` may cut."""
        return self.kind in ("inflight", "busy")


@dataclass(frozen=True)
class Lock:
    """The right to act on one GPU, as long as it lasts."""

    owner: str
    epoch: int


class Outcome(str, Enum):
    """What became of a controller's write."""

    OK = "ok"
    EPOCH = "epoch"  # no longer the leader
    PHASE = "phase"  # somebody else moved it first
    GUARD = "guard"  # the reason for the move is gone


@dataclass(frozen=True)
class Admission:
    """What the store says to a request."""

    phase: Phase
    start_seq: int
    blocked_by: str = ""
    released: bool = False
    """The request began before the last `down`, which gave it up."""


@dataclass(frozen=True)
class Touch:
    """Activity of one client to write back."""

    lease: str
    ttl: float
    began_ago: float
    """Seconds since the request began; one older than the last `down` extends nothing."""


@dataclass(frozen=True)
class Event:
    """One line of the history."""

    id: str
    time: float
    kind: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Snapshot:
    """Everything known of one GPU at one moment."""

    gpu: str
    now: float
    state: Mapping[str, str]
    leases: tuple[Lease, ...] = ()
    blocks: tuple[Lease, ...] = ()
    node: Mapping[str, str] = field(default_factory=dict)
    lock: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def phase(self) -> Phase:
        return Phase(self.state.get("phase") or "off")

    @property
    def since(self) -> float:
        return _seconds(self.state.get("since")) or 0.0

    @property
    def wanted(self) -> bool:
        return bool(self.leases) and not self.blocks

    @property
    def working(self) -> bool:
        return any(lease.is_work for lease in self.leases)

    @property
    def start_seq(self) -> int:
        return int(self.state.get("start_seq") or 0)

    @property
    def address(self) -> str:
        return self.state.get("address", "")

    @property
    def failure(self) -> Failure | None:
        return _failure(self.state.get("failure"))

    @property
    def released_at(self) -> float:
        return _seconds(self.state.get("released_at")) or 0.0

    def given_up(self, name: str, opens: float) -> bool:
        """Whether somebody ended this window of a schedule before its time."""
        held = any(entry.name == name for entry in (*self.leases, *self.blocks))
        last = self.time(f"window:{name}")
        return not held and last is not None and opens <= last + 0.0005

    @property
    def next_expiry(self) -> float | None:
        """When the first lease or block ends; None if there is none that ends."""
        ends = [lease.expiry for lease in (*self.leases, *self.blocks)]
        finite = [end for end in ends if end != float("inf")]
        return min(finite) if finite else None

    def time(self, name: str) -> float | None:
        """A time kept in the state, in seconds."""
        return _seconds(self.state.get(name))

    @property
    def node_view(self) -> NodeView:
        seen = _seconds(self.node.get("seen_at"))
        state = self.node.get("state", "")
        return NodeView(
            hello="boot_id" in self.node,
            state=cast(Any, state if state in ("loading", "ready", "failed") else ""),
            error=self.node.get("error", ""),
            heartbeat_age=None if seen is None else max(0.0, self.now - seen),
            interrupted=self.interrupted_at is not None,
        )

    @property
    def interrupted_at(self) -> float | None:
        """When the present boot's node said that the cloud takes the instance back."""
        return _seconds(self.node.get("interrupted_at"))

    @property
    def interruption_ends(self) -> float | None:
        """When the cloud takes it back, by what it has said."""
        return _seconds(self.node.get("interruption_ends"))

    @cached_property
    def report(self) -> Report | None:
        """The node's last report, without its log lines."""
        text = self.node.get("report")
        return Report.model_validate_json(text) if text else None

    @property
    def leader(self) -> str:
        """Who holds the controller lock now, or empty."""
        expiry = _seconds(self.lock.get("expiry")) or 0.0
        return self.lock.get("owner", "") if expiry > self.now else ""


def _seconds(milliseconds: str | None) -> float | None:
    return None if milliseconds in (None, "") else float(milliseconds) / 1000


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _failure(text: str | None) -> Failure | None:
    return Failure(**json.loads(text)) if text else None


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2]))


class Store:
    """The shared state of one deployment. Safe to use from several threads."""

    def __init__(
        self, client: redis.Redis, deployment: str, *, now: Callable[[], float] | None = None
    ) -> None:
        self._redis = client
        self._deployment = deployment
        self._now = now
        prelude = (_LUA / "prelude.lua").read_text()
        self._scripts = {
            path.stem: f"{prelude}\n{path.read_text()}"
            for path in _LUA.glob("*.lua")
            if path.stem != "prelude"
        }
        self._shas: dict[str, str] = {}

    # Keys

    def _key(self, gpu: str, name: str) -> str:
        return f"qwenctl:{{{self._deployment}/{gpu}}}:{name}"

    def keys(self, gpu: str) -> list[str]:
        """Every key of one GPU, in the order that the scripts expect."""
        return [self._key(gpu, name) for name in _KEYS]

    def _run(self, script: str, gpu: str, *args: str | int | float) -> Any:
        now = -1 if self._now is None else round(self._now() * 1000)
        keys = self.keys(gpu)
        argv = [now, self._key(gpu, "changed"), *args]
        with _errors(self._redis):
            text = self._scripts[script]
            sha = self._shas.get(script)
            if sha is None:
                import hashlib

                sha = self._shas[script] = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324
            try:
                return self._redis.evalsha(sha, len(keys), *keys, *argv)
            except redis.exceptions.NoScriptError:
                return self._redis.eval(text, len(keys), *keys, *argv)

    def ping(self) -> None:
        """Raises `StoreUnavailable` or `StoreAuthError` if the store cannot be used."""
        with _errors(self._redis):
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()

    @property
    def place(self) -> str:
        """Where the server is, without password."""
        return _place(self._redis)

    # Looking

    def snapshot(self, gpu: str) -> Snapshot:
        """Everything known of one GPU now."""
        now, state, leases, blocks, info, node, lock = self._run("snapshot", gpu)
        about = {name: json.loads(text) for name, text in _pairs(info).items()}

        def entries(flat: Sequence[str]) -> tuple[Lease, ...]:
            return tuple(
                Lease(
                    name,
                    float(expiry) / 1000,
                    about.get(name, {}).get("reason", ""),
                    about.get(name, {}).get("actor", ""),
                    about[name]["since"] / 1000 if name in about else None,
                )
                for name, expiry in _pairs(flat).items()
            )

        return Snapshot(
            gpu,
            float(now) / 1000,
            _pairs(state),
            entries(leases),
            entries(blocks),
            _pairs(node),
            _pairs(lock),
        )

    def events(self, gpu: str, count: int = 100, *, after: str = "") -> list[Event]:
        """The last ``count`` events, oldest first; with ``after``, the first ones after that id."""
        key = self._key(gpu, "events")
        with _errors(self._redis):
            if after:
                rows = self._redis.xrange(key, min=f"({after}", count=count)
            else:
                rows = cast(Any, self._redis.xrevrange(key, count=count))[::-1]
        return [_event(row) for row in cast(Any, rows)]

    def follow(self, gpu: str, after: str, wait: float) -> list[Event]:
        """The events after that id, waiting up to ``wait`` seconds for the first of them."""
        with _errors(self._redis):
            rows = self._redis.xread(
                {self._key(gpu, "events"): after or "0"}, block=max(1, _ms(wait)), count=200
            )
        return [_event(row) for _, batch in cast(Any, rows or []) for row in batch]

    def log_lines(self, gpu: str, count: int = 200) -> list[str]:
        """The node's last log lines, oldest first."""
        with _errors(self._redis):
            return cast("list[str]", self._redis.lrange(self._key(gpu, "log"), -count, -1))

    def watch(self, gpus: Sequence[str], on_change: Callable[[str, str], None]) -> Watcher:
        """Call ``on_change(gpu, what)`` from a thread whenever something changes.

        ``what`` is the kind of change, or ``resync`` after a lost connection, when anything may
        have changed.
        """
        return Watcher(self._redis, {self._key(gpu, "changed"): gpu for gpu in gpus}, on_change)

    # The controller's

    def acquire(self, gpu: str, owner: str, ttl: float) -> tuple[Lock | None, bool, float]:
        """Take or renew the controller lock.

        Returns the lock or None, whether it was newly taken, and for how many seconds the present
        owner has it.
        """
        epoch, taken, left = self._run("acquire", gpu, owner, _ms(ttl))
        return (Lock(owner, int(epoch)) if epoch else None), bool(taken), left / 1000

    def release_lock(self, gpu: str, lock: Lock) -> None:
        """Give the lock back, so that a successor need not wait it out."""
        self._run("release_lock", gpu, lock.owner, lock.epoch)

    def transition(
        self, gpu: str, lock: Lock, source: Phase, move: Move, *, drain: float, idle_timeout: float
    ) -> Outcome:
        """Make a transition if the lock, the phase and the guard still hold.

        Raises:
            ValueError: the lifecycle knows no such transition; a mistake in the code.
        """
        if move.to not in TRANSITIONS[source]:
            raise ValueError(f"no transition from {source.value} to {move.to.value}")
        failure = json.dumps(vars(move.failure)) if move.failure else ""
        # The states in which the guard is about use need the drain time to have passed.
        wait = drain if move.guard in (Guard.IDLE, Guard.NO_WORK) else 0.0
        return Outcome(
            self._run(
                "transition",
                gpu,
                lock.owner,
                lock.epoch,
                source.value,
                move.to.value,
                move.guard.value,
                _ms(wait),
                move.cause,
                failure,
                _ms(idle_timeout),
                "1" if move.adopt else "0",
            )
        )

    def record_call(
        self,
        gpu: str,
        lock: Lock,
        phase: Phase,
        verb: str,
        *,
        request_id: str = "",
        error: str = "",
        note: str = "",
    ) -> Outcome:
        """Note that the cloud accepted, or may have accepted, the call of this phase."""
        args = (lock.owner, lock.epoch, phase.value, verb, request_id, error, plain(note))
        return Outcome(self._run("record_call", gpu, *args))

    def record_observation(
        self,
        gpu: str,
        lock: Lock,
        *,
        state: str,
        instance_id: str = "",
        address: str = "",
        reason: str = "",
        error: str = "",
        machine: str = "",
    ) -> Outcome:
        """Keep what the cloud says, or why it could not be asked.

        ``machine``: which instance was asked about, in words; see `GpuConfig.machine`.
        """
        return Outcome(
            self._run(
                "record_observation",
                gpu,
                lock.owner,
                lock.epoch,
                state,
                instance_id,
                address,
                reason,
                error,
                machine,
            )
        )

    # Demand

    def demand(
        self,
        gpu: str,
        lease: str,
        ttl: float,
        *,
        reason: str,
        actor: str,
        inflight: str = "",
        inflight_ttl: float = 30.0,
        may_wake: bool = True,
        began_ago: float = 0.0,
    ) -> Admission:
        """Turn a request into a lease, and a draining GPU back into a ready one."""
        phase, seq, block, released = self._run(
            "demand",
            gpu,
            lease,
            _ms(ttl),
            plain(reason),
            plain(actor),
            inflight,
            _ms(inflight_ttl),
            "1" if may_wake else "0",
            _ms(began_ago),
        )
        return Admission(Phase(phase), int(seq), block, bool(released))

    def touch(
        self, gpu: str, inflight: str, inflight_ttl: float, touches: Sequence[Touch], *, actor: str
    ) -> Phase:
        """Write back a proxy's activity; ``inflight_ttl`` 0: nothing is in flight any more."""
        args: list[str | int] = []
        for touch in touches:
            args += [touch.lease, _ms(touch.ttl), _ms(touch.began_ago)]
        return Phase(self._run("touch", gpu, inflight, _ms(inflight_ttl), actor, *args))

    def pin(
        self, gpu: str, lease: str, ttl: float, *, reason: str, actor: str, exact: bool = True
    ) -> Admission:
        """Hold a lease for a given time, unless the GPU is blocked."""
        phase, block = self._run(
            "pin", gpu, lease, _ms(ttl), plain(reason), plain(actor), "1" if exact else "0"
        )
        return Admission(Phase(phase), 0, block)

    def release(
        self, gpu: str, *, actor: str, reason: str = "", cut: bool = False, only: str = ""
    ) -> int:
        """Drop every lease but running work (``cut``: that too); the number dropped."""
        return int(
            self._run("release", gpu, plain(actor), plain(reason), "1" if cut else "0", only)
        )

    def block(
        self,
        gpu: str,
        name: str,
        ttl: float | None,
        *,
        reason: str,
        actor: str,
        cut: bool = False,
    ) -> Phase:
        """Forbid the GPU to be on, for ``ttl`` seconds or until unblocked."""
        milliseconds = -1 if ttl is None else _ms(ttl)
        return Phase(
            self._run(
                "block", gpu, name, milliseconds, plain(reason), plain(actor), "1" if cut else "0"
            )
        )

    def unblock(self, gpu: str, name: str = "", *, actor: str) -> list[str]:
        """Lift one block, or all; the names lifted."""
        return cast("list[str]", self._run("unblock", gpu, name, actor))

    def schedule(
        self, gpu: str, name: str, opens: float, ends: float, *, reason: str, actor: str
    ) -> Literal["new", "held", "given_up", "over"]:
        """Hold a schedule's lease (``prewarm:``) or block (``off-hours:``) until its window ends.

        The window that opens at that moment is written once, however often this is called and by
        however many: ``new``. After that it is ``held``, or ``given_up`` if somebody ended it.
        """
        kind = "block" if name.startswith("off-hours:") else "lease"
        return cast(
            Literal["new", "held", "given_up", "over"],
            self._run(
                "schedule", gpu, name, _ms(opens), _ms(ends), plain(reason), plain(actor), kind
            ),
        )

    def look(self, gpu: str, *, actor: str, cause: str) -> None:
        """Ask the controller to read the cloud again."""
        self._run("look", gpu, actor, cause)

    def note(self, gpu: str, kind: str, **fields: str) -> None:
        """Add one event that is no transition."""
        self._run("note", gpu, kind, *(part for pair in fields.items() for part in pair))

    # The node's

    def hello(self, hello: Hello, nonce: str, *, heartbeat: float = 5.0) -> tuple[str, int]:
        """Record a boot; ``ok``, ``replay``, ``earlier_boot`` or ``unexpected``, and start_seq.

        ``heartbeat``: the seconds between two reports. Another boot's hello counts once the present
        one has missed two of them, and no sooner than 10 s after its last.
        """
        verdict, seq = self._run(
            "hello",
            hello.gpu,
            nonce,
            _ms(NONCE_SECONDS),
            hello.boot_id,
            hello.agent_version,
            _ms(max(ALIVE_SECONDS, 2 * heartbeat)),
        )
        return verdict, int(seq)

    def command(self, gpu: str, command: Command, *, actor: str) -> bool:
        """Have the node do something once, by its next report; False if no node is there."""
        return bool(self._run("command", gpu, command.model_dump_json(), command.verb, actor))

    def report(
        self, report: Report, nonce: str, *, heartbeat: float
    ) -> tuple[str, int, tuple[Command, ...]]:
        """Record a report; ``ok``, ``replay`` or ``other_boot``, the present start_seq, and what
        the node should do."""
        verdict, seq, commands = self._run(
            "report",
            report.gpu,
            nonce,
            _ms(NONCE_SECONDS),
            report.boot_id,
            report.start_seq,
            report.state,
            report.error,
            report.progress.phase,
            report.model_dump_json(exclude={"log"}),
            f"busy:{report.gpu}",
            _ms(2 * heartbeat) if report.active else 0,
            plain(report.interruption.action) if report.interruption else "",
            _ms(report.interruption.seconds_left) if report.interruption else 0,
            *report.log,
        )
        return verdict, int(seq), tuple(Command.model_validate_json(text) for text in commands)


def _event(row: tuple[str, dict[str, str]]) -> Event:
    identity, fields = row
    time = _seconds(fields.pop("time", None)) or int(identity.split("-")[0]) / 1000
    return Event(identity, time, fields.pop("kind", ""), fields)


class Watcher:
    """A thread that passes on change messages until it is stopped."""

    def __init__(
        self,
        client: redis.Redis,
        channels: Mapping[str, str],
        on_change: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._channels = dict(channels)
        self._on_change = on_change
        self._stopped = threading.Event()
        self._end = f"qwenctl:watcher:{secrets.token_hex(8)}"
        """A channel of our own; a message on it ends the wait for the next one."""
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(Exception):  # without the store the thread ends by itself
            self._client.publish(self._end, "end")
        self._thread.join(timeout=3)

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            try:
                pubsub: Any = cast(Any, self._client).pubsub(ignore_subscribe_messages=True)
                with contextlib.closing(pubsub) as sub:
                    sub.subscribe(self._end, *self._channels)
                    for name in self._channels.values():
                        self._on_change(name, "resync")
                    pause = 0.05
                    while not self._stopped.is_set():
                        message = sub.get_message(timeout=1.0)
                        gpu = self._channels.get(message["channel"]) if message else None
                        if gpu is not None:
                            self._on_change(gpu, message["data"])
            except Exception as error:  # whatever it is: without this thread nobody is woken
                log.debug("waiting for changes was interrupted: %s", error)
                self._stopped.wait(pause)
                pause = min(2.0, pause * 2)


_REFUSALS = (redis.exceptions.OutOfMemoryError, redis.exceptions.ClusterError)
_REFUSAL_CODES = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")
"""A full disk or memory, a cluster that is not whole: the server is there and of no use."""


@contextlib.contextmanager
def _errors(client: redis.Redis | str) -> Iterator[None]:
    """Turn Redis's errors into ours; ``client`` or its place is named in them."""
    try:
        yield
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise StoreAuthError(
            f"Redis at {_place(client)} refuses the password or user: {error}; "
            "check redis_url, redis_password_file"
        ) from None
    except (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.BusyLoadingError,
        redis.exceptions.ReadOnlyError,
        redis.exceptions.RedisClusterException,  # no RedisError: no node of it answers
        OSError,
    ) as error:
        text = str(error)
        if "NOAUTH" in text or "WRONGPASS" in text or "invalid username-password" in text:
            raise StoreAuthError(
                f"Redis at {_place(client)} wants another password; check redis_url, "
                "redis_password_file"
            ) from None
        raise StoreUnavailable(
            f"Redis at {_place(client)} cannot be reached: {text.rstrip('.')}; check redis_url and "
            "that the server runs"
        ) from None
    except redis.exceptions.ResponseError as error:
        if not isinstance(error, _REFUSALS) and not str(error).startswith(_REFUSAL_CODES):
            raise  # a mistake in a script of ours
        raise StoreUnavailable(f"Redis at {_place(client)} refuses to work: {error}") from None


def _place(client: redis.Redis | str) -> str:
    """Where the server is, without password."""
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
    """A client for the configured Redis, or for our own embedded server.

    Nothing is connected yet, except to a cluster.
    ``redis+sentinel://[:password@]host:port,host:port/service[/db]`` finds the master by Sentinel,
    ``redis+cluster://host:port`` a Redis Cluster.

    Raises:
        ConfigError: a URL that cannot be used, or an unreadable password file.
        StoreUnavailable, StoreAuthError: a Redis Cluster, which is asked for its nodes at once,
            cannot be reached or refuses the password.
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
    scheme = config.redis_url.partition("://")[0].lower()  # one that is known: `Config` sees to it
    try:
        url = urlsplit(config.redis_url)
        if scheme == "redis+sentinel":
            return _sentinel(url.netloc, url.path, options)
        if scheme == "redis+cluster":
            options.pop("retry")
            plain = urlunsplit(url._replace(scheme="redis"))
            with _errors(f"{url.hostname}:{url.port}"):  # it asks the cluster at once
                return cast(redis.Redis, redis.RedisCluster.from_url(plain, **options))
        return redis.Redis.from_url(config.redis_url, **options)
    except (ValueError, redis.exceptions.RedisError):
        # Not the error's own words: they may quote a part of the password.
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
    # One that does not answer is passed over for the next, not tried again.
    asking = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
    sentinel: Any = cast(Any, Sentinel)(places, sentinel_kwargs=asking)
    return cast(
        redis.Redis, sentinel.master_for(service or "mymaster", db=int(database or 0), **options)
    )


def open_store(config: Config) -> Store:
    """The store of this deployment, checked to be usable.

    Raises:
        StoreUnavailable: Redis cannot be reached.
        StoreAuthError: Redis refuses the password.
        ConfigError: the URL or the state directory cannot be used.
    """
    store = Store(connect(config), config.deployment)
    store.ping()
    return store
