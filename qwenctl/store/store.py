"""Leases, blocks, phase, controller lock and history of each GPU, in Redis.

Each method runs the atomic Lua script of its name in ``lua/``. All times are seconds on one clock:
the server's, or the constructor's ``now``, for tests under virtual time. Expiry is always compared,
never left to a Redis TTL.

Every method raises `StoreUnavailable` when Redis cannot be reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakSet

import redis

from qwenctl.config.deployment import Config
from qwenctl.core import leases
from qwenctl.core.events import Event, EventKind, decode, encode
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import TRANSITIONS, Guard, Phase
from qwenctl.core.snapshot import Admission, Lease, Lock, Outcome, Snapshot, Touch
from qwenctl.errors import StoreUnavailable
from qwenctl.lib.text import escape_control
from qwenctl.lib.version import full_version
from qwenctl.protocol.messages import PROTOCOL, Command, Hello, Report
from qwenctl.protocol.signing import MAX_SKEW_SECONDS
from qwenctl.store.clock import ClockGuard, Reading, elapsed, step_between
from qwenctl.store.connect import connect, connections_made, explained_errors, place_of
from qwenctl.store.watcher import Watcher

_LUA = Path(__file__).with_name("lua")
_KEYS = [
    *("state", "leases", "blocks", "info", "lock", "node", "nonces", "events", "log", "commands"),
    "repeats",
]

_SESSION_KEYS = ("sessions", "session_info", "check", "sign_ins", "known_networks")

NONCE_SECONDS = 2 * MAX_SKEW_SECONDS
"""How long a nonce is remembered: longer than a message with it can be fresh."""

ALIVE_SECONDS = 10.0
"""An agent counts as present for so long after a message, however short its heartbeat."""


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2]))


class Store:
    """The shared state of one deployment; thread-safe."""

    def __init__(
        self,
        client: redis.Redis,
        deployment: str,
        *,
        now: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self._redis = client
        self._deployment = deployment
        self._now = now
        # A clock that is handed in goes with no other, unless that is handed in, too.
        self._guard = ClockGuard(monotonic or elapsed) if monotonic or not now else None
        self._watchers: WeakSet[Watcher] = WeakSet()
        prelude = (_LUA / "prelude.lua").read_text("utf-8")
        self._scripts = {
            path.stem: f"{prelude}\n{path.read_text('utf-8')}"
            for path in _LUA.glob("*.lua")
            if path.stem != "prelude"
        }
        self._shas = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in self._scripts.items()
        }

    # Keys

    def _key(self, gpu: str, name: str) -> str:
        return f"qwenctl:{{{self._deployment}/{gpu}}}:{name}"

    def keys(self, gpu: str) -> list[str]:
        """Return the keys of one GPU in the scripts' order; for no GPU, those of the sessions."""
        return [self._key(gpu, name) for name in (_KEYS if gpu else _SESSION_KEYS)]

    def _run(self, script: str, gpu: str, *args: str | int) -> Any:
        for _ in range(3):
            latest = self._guard.latest(gpu) if self._guard else None
            try:
                return self._call(script, gpu, latest, *args)
            except redis.exceptions.ResponseError as error:
                if "CLOCKSTEP" not in str(error):
                    raise
                self._check_clock(gpu)
        raise StoreUnavailable(
            f"Redis at {self.place} answers too late, or its clock is not steady"
        )

    def _check_clock(self, gpu: str) -> None:
        """Read the clock anew, and have a step ahead absorbed that is sure."""
        assert self._guard
        before = self._guard.last(gpu)
        after = self._read_clock(gpu, "0", "", "0")
        step = step_between(before, after) if before else 0.0
        if before and step:
            after = self._read_clock(gpu, _ms(step), str(before.steps), _ms(before.now))
        self._guard.forget(gpu)  # a store that answers slowly is used all the same
        self._guard.note(gpu, after)

    def _read_clock(self, gpu: str, *args: str | int) -> Reading:
        assert self._guard
        sent = self._guard.monotonic()
        now, steps = self._call("clock", gpu, None, *args)
        return Reading(float(now) / 1000, int(steps), sent, self._guard.monotonic())

    def _call(self, script: str, gpu: str, latest: float | None, *args: str | int) -> Any:
        now = str(-1 if self._now is None else round(self._now() * 1000))
        if latest is not None:
            now += f":{_ms(latest)}"
        keys = self.keys(gpu)
        flags = (int(arg) if isinstance(arg, bool) else arg for arg in args)
        argv = [now, self._key(gpu, "changed"), *flags]
        with self._explained():
            try:
                return self._redis.evalsha(self._shas[script], len(keys), *keys, *argv)
            except redis.exceptions.NoScriptError:
                return self._redis.eval(self._scripts[script], len(keys), *keys, *argv)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Explain Redis's errors; connect anew after them, the watchers too."""
        try:
            with explained_errors(self._redis):
                yield
        except StoreUnavailable:
            for watcher in tuple(self._watchers):
                watcher.reconnect()
            raise

    def ping(self) -> None:
        """Raise `StoreUnavailable` or `StoreAuthError` if the store cannot be used."""
        with self._explained():
            self._redis.ping()

    def check(self) -> None:
        """Raise `StoreUnavailable` or `StoreAuthError` if the store cannot be written to."""
        self._run("check", "")

    @property
    def deployment(self) -> str:
        return self._deployment

    def settle_id(self, proposal: str) -> str:
        """Return this deployment's id: the proposal, unless it has one."""
        key = f"qwenctl:{{{self._deployment}}}:id"
        with explained_errors(self._redis):
            self._redis.set(key, proposal, nx=True)
            return str(self._redis.get(key))

    def remember_models(self, gpu: str, text: str) -> None:
        """Remember the models that a node has listed; see `proxy.data.model_list`."""
        with self._explained():
            self._redis.set(self._key(gpu, "models"), text)

    def models(self, gpu: str) -> str:
        """Return what `remember_models` was given last, or an empty text."""
        with self._explained():
            return str(self._redis.get(self._key(gpu, "models")) or "")

    def close(self) -> None:
        self._redis.close()

    @property
    def connected(self) -> int:
        """How often a connection was made: it may be to a restarted server, or to another."""
        return connections_made(self._redis)

    def listeners(self, gpu: str) -> int:
        """Return how many connections listen for the changes of a GPU."""
        with self._explained():
            [(_, count)] = cast(Any, self._redis.pubsub_numsub(self._key(gpu, "changed")))
        return int(count)

    @property
    def place(self) -> str:
        """Where the server is, without password."""
        return place_of(self._redis)

    # Reads

    def snapshot(self, gpu: str) -> Snapshot:
        """Return everything known of one GPU now."""
        sent = self._guard.monotonic() if self._guard else 0.0
        now, state, leases, blocks, info, node, lock = self._run("snapshot", gpu)
        if self._guard:
            steps = int(_pairs(lock).get("steps", 0))
            reading = Reading(float(now) / 1000, steps, sent, self._guard.monotonic())
            self._guard.note(gpu, reading)
        about = {name: json.loads(text) for name, text in _pairs(info).items()}

        def entry(name: str, expiry: str) -> Lease:
            known = about.get(name, {})
            since = known["since"] / 1000 if known else None
            reason, actor = known.get("reason", ""), known.get("actor", "")
            answered = known["answered"] / 1000 if "answered" in known else None
            return Lease(name, float(expiry) / 1000, reason, actor, since, answered)

        return Snapshot(
            gpu,
            float(now) / 1000,
            _pairs(state),
            tuple(entry(*pair) for pair in _pairs(leases).items()),
            tuple(entry(*pair) for pair in _pairs(blocks).items()),
            _pairs(node),
            _pairs(lock),
        )

    def events(self, gpu: str, count: int = 100, *, after: str = "") -> list[Event]:
        """Return the last events, oldest first; with ``after``, the first after that id."""
        key = self._key(gpu, "events")
        with self._explained():
            if after:
                rows = self._redis.xrange(key, min=f"({after}", count=count)
            else:
                rows = cast(Any, self._redis.xrevrange(key, count=count))[::-1]
        return [decode(*row) for row in cast(Any, rows)]

    def follow(self, gpu: str, after: str, wait: float) -> list[Event]:
        """Return the events after an id; wait up to ``wait`` seconds for the first."""
        with self._explained():
            rows = self._redis.xread(
                {self._key(gpu, "events"): after or "0"}, block=max(1, _ms(wait)), count=200
            )
        return [decode(*row) for _, batch in cast(Any, rows or []) for row in batch]

    def log_lines(self, gpu: str, count: int = 200) -> list[str]:
        """Return the node's last log lines, oldest first."""
        with self._explained():
            return cast("list[str]", self._redis.lrange(self._key(gpu, "log"), -count, -1))

    def watch(self, gpus: Sequence[str], on_change: Callable[[str, str], None]) -> Watcher:
        """Call ``on_change(gpu, what)`` from a thread at each change.

        ``what`` is the kind of change, or ``resync`` when anything may have changed.
        """
        channels = {self._key(gpu, "changed"): gpu for gpu in gpus}
        watcher = Watcher(self._redis, channels, on_change)
        self._watchers.add(watcher)
        return watcher

    # Writes of the controller

    def acquire(self, gpu: str, owner: str, ttl: float) -> tuple[Lock | None, bool, float]:
        """Take or renew the controller lock.

        Return the lock or None, whether it is newly taken, and its owner's remaining seconds.
        """
        epoch, taken, left = self._run("acquire", gpu, owner, _ms(ttl))
        return (Lock(owner, int(epoch)) if epoch else None), bool(taken), left / 1000

    def release_lock(self, gpu: str, lock: Lock) -> None:
        """Give the lock back, so that a successor need not wait for its expiry."""
        self._run("release_lock", gpu, lock.owner, lock.epoch)

    def transition(
        self,
        gpu: str,
        lock: Lock,
        source: Phase,
        move: Move,
        *,
        drain: float,
        idle_timeout: float,
        started: str = "",
    ) -> Outcome:
        """Make a transition if the lock, the phase and the guard still hold.

        ``started`` are the settings to remember until the instance is off; see
        `qwenctl.config.started`.

        Raises:
            ValueError: the lifecycle knows no such transition; a mistake in the code.
        """
        if move.to not in TRANSITIONS[source]:
            raise ValueError(f"no transition from {source.value} to {move.to.value}")
        failure = move.failure.encode() if move.failure else ""
        # Guards about use also require that the drain time has passed.
        wait = drain if move.guard in (Guard.IDLE, Guard.NO_WORK) else 0.0
        held = (lock.owner, lock.epoch, source.value, move.to.value, move.guard.value, _ms(wait))
        written = (move.cause, failure, _ms(idle_timeout), move.adopt, started)
        return Outcome(self._run("transition", gpu, *held, *written))

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
        code: str = "",
    ) -> Outcome:
        """Record that the cloud accepted, may have accepted or refused the call of this phase.

        ``code``: the failure code of the error.
        """
        args = (lock.owner, lock.epoch, phase.value, verb, request_id, error, escape_control(note))
        return Outcome(self._run("record_call", gpu, *args, code))

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
        code: str = "",
        started: str = "",
        kept_address: str = "",
    ) -> Outcome:
        """Record the state that the cloud reports, or why it could not be asked.

        ``machine`` names the instance; see `GpuConfig.machine`. ``code``: the error's failure code.
        ``started``: see `transition`. ``kept_address``: see `Observation.kept_address`.
        """
        seen = (state, instance_id, address, reason, error, machine, code, started, kept_address)
        return Outcome(self._run("record_observation", gpu, lock.owner, lock.epoch, *seen))

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
        """Turn a request into a lease, and a draining GPU back to ready."""
        wanted = (lease, _ms(ttl), escape_control(reason), escape_control(actor))
        used = (inflight, _ms(inflight_ttl), may_wake, _ms(began_ago))
        phase, seq, block, released = self._run("demand", gpu, *wanted, *used)
        return Admission(Phase(phase), int(seq), block, bool(released))

    def touch(
        self,
        gpu: str,
        inflight: str,
        inflight_ttl: float,
        touches: Sequence[Touch],
        *,
        actor: str,
        moved_ago: float = 0.0,
        unanswered: float = 0.0,
    ) -> Phase:
        """Write back a proxy's activity; ``inflight_ttl`` 0: nothing is in flight.

        ``moved_ago``: seconds since the youngest request in flight began or had a byte of the node;
        ``unanswered``: seconds for which the node has answered nothing that it was asked.
        """
        args: list[str | int] = [_ms(moved_ago), _ms(unanswered)]
        for touch in touches:
            args += [touch.lease, _ms(touch.ttl), _ms(touch.began_ago)]
        return Phase(self._run("touch", gpu, inflight, _ms(inflight_ttl), actor, *args))

    def pin(
        self, gpu: str, lease: str, ttl: float, *, reason: str, actor: str, exact: bool = True
    ) -> Admission:
        """Hold a lease for a given time, unless the GPU is blocked."""
        phase, block = self._run(
            "pin", gpu, lease, _ms(ttl), escape_control(reason), escape_control(actor), exact
        )
        return Admission(Phase(phase), 0, block)

    def release(
        self, gpu: str, *, actor: str, reason: str = "", force_stop: bool = False, only: str = ""
    ) -> int:
        """Drop every lease but running work (``force_stop``: that too); return their number."""
        return int(
            self._run(
                "release", gpu, escape_control(actor), escape_control(reason), force_stop, only
            )
        )

    def block(
        self,
        gpu: str,
        name: str,
        ttl: float | None,
        *,
        reason: str,
        actor: str,
        force_stop: bool = False,
    ) -> Phase:
        """Keep the GPU off for ``ttl`` seconds, or until unblocked."""
        milliseconds = -1 if ttl is None else _ms(ttl)
        why = (escape_control(reason), escape_control(actor))
        return Phase(self._run("block", gpu, name, milliseconds, *why, force_stop))

    def unblock(self, gpu: str, name: str = "", *, actor: str, forget: bool = False) -> list[str]:
        """Lift one block, or all; return the names lifted.

        ``forget``: also forget the instance that the settings no longer name. Without it the block
        on its account is lifted by its name only.
        """
        return cast("list[str]", self._run("unblock", gpu, name, actor, forget))

    def schedule(
        self, gpu: str, name: str, opens: float, ends: float, *, reason: str, actor: str
    ) -> Literal["new", "held", "given_up", "over"]:
        """Hold a schedule's lease or block until its window ends.

        The window that opens at that moment is written once, however many schedulers call: ``new``.
        After that it is ``held``, or ``given_up`` if somebody ended it.
        """
        kind = EventKind.BLOCK if leases.kind_of(name) in leases.BLOCKS else EventKind.LEASE
        why = (escape_control(reason), escape_control(actor))
        said = self._run("schedule", gpu, name, _ms(opens), _ms(ends), *why, kind.value)
        return cast(Literal["new", "held", "given_up", "over"], said)

    def schedule_trouble(self, gpu: str, text: str) -> None:
        """Record which schedules cannot be known, and what is done meanwhile; empty: all are."""
        self._run("schedule_trouble", gpu, escape_control(text))

    def overdue(self, gpu: str, lock: Lock, since: float, urls: Sequence[str], text: str) -> None:
        """Record that the agent of the boot since then is overdue, and where it is told to call."""
        shown = (escape_control(" ".join(urls)), escape_control(text))
        self._run("overdue", gpu, lock.owner, lock.epoch, _ms(since), *shown)

    def look(self, gpu: str, *, actor: str, cause: str) -> None:
        """Ask the controller to read the cloud again."""
        self._run("look", gpu, actor, cause)

    def try_now(self, gpu: str, pause: float) -> bool:
        """Bring the next attempt of a failed GPU forward, to ``pause`` seconds after the failure."""
        return bool(self._run("try_now", gpu, _ms(pause)))

    def note(self, gpu: str, kind: EventKind, **fields: str) -> None:
        """Append an event that is no transition."""
        stored = encode(kind, **fields)
        self._run("note", gpu, *(part for pair in stored.items() for part in pair))

    # Names of GPUs, also of those that the settings no longer have

    def gpus(self) -> list[str]:
        """Return the GPUs that a controller has looked after and nobody has forgotten."""
        with explained_errors(self._redis):
            return sorted(cast("set[str]", self._redis.smembers(self._key("", "gpus"))))

    def remember_gpu(self, gpu: str) -> None:
        """Add a GPU to `gpus`."""
        with explained_errors(self._redis):
            self._redis.sadd(self._key("", "gpus"), gpu)

    def forget_gpu(self, gpu: str) -> None:
        """Remove a GPU from `gpus`."""
        with explained_errors(self._redis):
            self._redis.srem(self._key("", "gpus"), gpu)

    # Browser sessions, which belong to no GPU

    def begin_session(self, session: str, ttl: float, *, limit: int) -> int:
        """Record a session; return when, in milliseconds. Beyond the limit, the oldest end."""
        version = secrets.token_hex(8)
        return int(self._run("begin_session", "", session, _ms(ttl), limit, version))

    def sign_in(
        self,
        network: str,
        buckets: Sequence[tuple[str, int, float]],
        *,
        local: bool = False,
        count: bool = True,
    ) -> float:
        """Count an attempt to sign in; return for how many seconds it is refused instead.

        ``buckets``: name, size and seconds per attempt; the last does not count for attempts from
        this machine (``local``), or from a network that `signed_in` knows.
        """
        args = (arg for name, size, every in buckets for arg in (name, size, _ms(every)))
        return int(self._run("sign_in", "", network, local, count, *args)) / 1000

    def signed_in(
        self, network: str, buckets: Mapping[str, float], *, ttl: float, limit: int
    ) -> None:
        """Take an attempt back, which was right; know the network for ``ttl`` seconds."""
        args = (arg for name, every in buckets.items() for arg in (name, _ms(every)))
        self._run("signed_in", "", network, _ms(ttl), limit, *args)

    def end_session(self, session: str) -> None:
        """End a session, unless it has ended."""
        self._run("end_session", "", session, secrets.token_hex(8))

    def sessions(
        self, known: str, seen: Sequence[str] = ()
    ) -> tuple[int, str, frozenset[str] | None]:
        """Return the time in milliseconds, the version of the sessions, and the sessions.

        None instead of the sessions: their version is ``known``. ``seen`` are in use now.
        """
        now, version, *found = self._run("sessions", "", known, *seen)
        return int(now), version, frozenset(found[0]) if found else None

    # Messages of the node

    def hello(self, hello: Hello, nonce: str, *, heartbeat: float = 5.0) -> tuple[str, int]:
        """Record a boot; return the verdict of ``hello.lua``, and start_seq.

        ``heartbeat``: the seconds between two reports. Another boot's hello counts once the present
        boot has missed two of them, and no sooner than 10 s after its last.
        """
        alive = _ms(max(ALIVE_SECONDS, 2 * heartbeat))
        unread = escape_control(hello.not_understood)
        agent = (hello.boot_id, hello.agent_version, alive, hello.protocol, unread)
        boot = (*agent, full_version(), PROTOCOL)
        verdict, seq = self._run("hello", hello.gpu, nonce, _ms(NONCE_SECONDS), *boot)
        return verdict, int(seq)

    def refused_agent(self, gpu: str, code: str, peer: str, detail: str) -> None:
        """Note that a message of this GPU's agent was refused; see `qwenctl.core.refusals`."""
        self._run("refused_agent", gpu, code, peer, escape_control(detail)[:300])

    def unneeded_for(self, gpu: str, boot_id: str) -> float:
        """Return for how many seconds nobody has needed this boot, as the node is told."""
        return int(self._run("unneeded", gpu, boot_id)) / 1000

    def command(self, gpu: str, command: Command, *, actor: str) -> bool:
        """Queue a command for the node's next report; return False if there is no node."""
        return bool(self._run("command", gpu, command.model_dump_json(), command.verb, actor))

    def report(
        self, report: Report, nonce: str, *, heartbeat: float
    ) -> tuple[str, int, tuple[Command, ...]]:
        """Record a report; return ``report.lua``'s verdict, start_seq and the commands."""
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
            leases.busy(report.gpu),
            _ms(2 * heartbeat) if report.active else 0,
            escape_control(report.interruption.action) if report.interruption else "",
            _ms(report.interruption.seconds_left) if report.interruption else 0,
            *report.log,
        )
        return verdict, int(seq), tuple(Command.model_validate_json(text) for text in commands)


def open_store(config: Config) -> Store:
    """Open the store of this deployment, and check that it can be used.

    Raises:
        StoreUnavailable: Redis cannot be reached.
        StoreAuthError: Redis refuses the password.
        ConfigError: the URL or the state directory cannot be used.
    """
    store = Store(connect(config), config.deployment)
    store.ping()
    return store
