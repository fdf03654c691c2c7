"""`qwenctl demo`: run proxy, store and instance here, with their own state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from qwenctl.cli.common.context import heed_interrupt, open_store
from qwenctl.cli.common.terminal import paint, shorten, warn
from qwenctl.cli.setup.init import sample_webui
from qwenctl.cli.setup.serve import proxy_command
from qwenctl.cli.use.status import FOLLOW_SECONDS, event_words
from qwenctl.clouds.base import ProviderError
from qwenctl.config.deployment import Config, state_dir
from qwenctl.config.loading import load_config
from qwenctl.config.providers import make_provider
from qwenctl.config.toml import to_toml
from qwenctl.control.standalone import Follower
from qwenctl.core.events import EventKind
from qwenctl.core.leases import maintenance
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.wakes import wakes
from qwenctl.errors import ConfigError, ExitCode, UserError
from qwenctl.lib.extras import how_to_install
from qwenctl.lib.private_file import open_private, private_directory
from qwenctl.store.embedded import socket_path
from qwenctl.store.store import Store

GPU = "demo"
IDLE_SECONDS = {False: 20.0, True: 6.0}
"""Idle timeout of the demo's GPU, attended and with ``--once``."""

STARTUP_SECONDS = 30.0
READY_SECONDS = 90.0
STOP_SECONDS = 30.0


def _failed(text: str) -> UserError:
    return UserError(text, ExitCode.FAILED)


def demo(once: bool, port: int, keep: bool) -> None:
    heed_interrupt()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = state_dir()
    with _only_one(base), _Demo(base / ".demo", once, port, keep) as running:
        if once:
            running.cycle()
        else:
            running.invite()


@contextlib.contextmanager
def _only_one(base: Path) -> Iterator[None]:
    """Refuse a second demo of this user, which would remove the state of the first."""
    try:
        private_directory(base, (".demo.lock",), trusting=True)
        lock = os.fdopen(open_private(base / ".demo.lock", os.O_WRONLY | os.O_CREAT), "w")
    except OSError as error:
        raise ConfigError(
            f"cannot use the state directory {base}: {error.strerror}; set XDG_STATE_HOME to a "
            "directory that you can write"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another demo of yours is running; end it with Ctrl-C first") from None
        yield


class _Demo:
    """A proxy, its store and an instance. A context manager."""

    def __init__(self, state: Path, once: bool, port: int, keep: bool) -> None:
        self._state, self._once, self._keep = state, once, keep
        self._port = _usable(port) if port else _free_port()
        self._began = time.monotonic()
        self._proxy: subprocess.Popen[bytes] | None = None
        self._log = state / "proxy.log"

    # Starting and stopping

    def __enter__(self) -> _Demo:
        # The settings of the user's own deployment must not change the demo.
        for name in [name for name in os.environ if name.startswith("QWENCTL_")]:
            if name not in ("QWENCTL_DEBUG", "QWENCTL_LANG"):
                del os.environ[name]
        os.environ["QWENCTL_EMBEDDED_LINGER"] = "5"
        _clear(self._state)
        try:
            self.config = self._configure()
            self.store: Store = open_store(self.config)
            self._start_proxy()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _configure(self) -> Config:
        webui = sample_webui()
        if webui is None:
            raise UserError(f"the sample WebUI is not installed: {how_to_install('demo')}")
        webui_port = _free_port()
        command = [sys.executable, str(webui), "--host", "127.0.0.1", "--port", str(webui_port)]
        data = {
            "deployment": "demo",
            "state_dir": str(self._state),
            "proxy": {"listen": f"127.0.0.1:{self._port}", "shutdown_grace": 2},
            "gpu": {
                GPU: {
                    "provider": "local",
                    "preset": "gradio",
                    "idle_timeout": IDLE_SECONDS[self._once],
                    "boot_estimate": 15.0,
                    "local": {"boot_seconds": 3.0, "stop_seconds": 1.0},
                    "timing": {"heartbeat": 1.0, "dead_man": 30.0, "retry": 2.0, "load": 120.0},
                    "service": [
                        {
                            "name": "webui",
                            "command": [*command, "--load-seconds", "2" if self._once else "5"],
                            "port": webui_port,
                            "activity": {"path": "/activity"},
                        }
                    ],
                }
            },
        }
        path = self._state / "qwenctl.toml"
        try:
            self._state.mkdir(parents=True, mode=0o700)
            path.write_text(to_toml(data) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        return load_config(str(path))

    def _start_proxy(self) -> None:
        command, env = proxy_command(self.config.source)
        with open(self._log, "wb") as log:
            self._proxy = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches only us, and the instance is stopped first
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._proxy.wait(timeout=0.05)
            if self._proxy.poll() is not None:
                raise _failed(f"the proxy does not start: {self._last_words()}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0),
            ):
                return
        raise UserError(
            f"the proxy does not listen after {STARTUP_SECONDS:g} s: {self._last_words()}",
            ExitCode.TIMEOUT,
        )

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"

    def __exit__(self, *_: object) -> None:
        """Stop the instance, the proxy and Valkey, and remove their state."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(self, "store"):
            if not self._once:
                print("\nStopping the instance, the proxy and Valkey…", flush=True)
            with contextlib.suppress(UserError):
                if self._proxy and self._proxy.poll() is None:
                    self._turn_off()
        if self._proxy and self._proxy.poll() is None:
            self._proxy.terminate()
            try:
                self._proxy.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._proxy.kill()
                self._proxy.wait()
        if hasattr(self, "store"):
            self.store.close()
        if self._keep and self._state.exists():
            _stop_leftovers(self._state)
            print(f"State and logs are in {self._state}")
        else:
            _clear(self._state)

    def _turn_off(self) -> None:
        self.store.block(
            GPU, maintenance("demo"), None, reason="end", actor="demo", force_stop=True
        )
        with Follower(self.store, GPU) as follower:
            deadline = time.monotonic() + STOP_SECONDS
            for snapshot in follower.snapshots(every=1.0, deadline=deadline):
                if snapshot.phase is Phase.OFF:
                    return

    # Attended

    def invite(self) -> None:
        """Print what to try and then the events, until Ctrl-C."""
        url = paint(self.config.url, "cyan", bold=True)
        print(f"\n  The GPU is asleep. Open {url} and watch it wake.\n")
        print("  Try:  ask about a picture, then leave the tab alone:")
        print(f"        it goes off {IDLE_SECONDS[False]:g} s after its last use;")
        print("        write again in the same tab: it wakes, and the message is answered.")
        command = f"{_program()} -c {shlex.quote(self.config.source)} why"
        print(f"        In another terminal: {paint(command, bold=True)}")
        print("        (or status --watch, up --for 5m, block, events --follow, logs)\n")
        print("  Ctrl-C stops everything.\n", flush=True)
        last = ""
        try:
            while True:
                for event in self.store.follow(GPU, last, FOLLOW_SECONDS):
                    last = event.id
                    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
                    print(f"  {paint(clock, dim=True)}  {event_words(event)}", flush=True)
                if self._proxy and self._proxy.poll() is not None:
                    raise _failed(f"the proxy has ended: {self._last_words()}")
        except KeyboardInterrupt:
            return  # this is how a demo ends

    # Unattended

    def cycle(self) -> None:
        """Wake the GPU by HTTP, chat about a picture, let it go off; print the durations.

        Raises:
            UserError: a step failed.
        """
        import requests

        from qwenctl.cli.demo.chat import chat, sample_png

        url = self.config.url
        self._say(f"proxy is up at {url}, the GPU is off")
        page = requests.get(url, headers={"Accept": "text/html"}, timeout=10)
        if page.status_code != 503 or self.store.snapshot(GPU).phase is not Phase.OFF:
            raise _failed(
                f"GET / should show the waiting page and wake nothing: {page.status_code}"
            )
        self._say("GET / shows the waiting page (503) and wakes nothing")
        answer = requests.post(
            f"{url}/_qwenctl/api/wake?gpu={GPU}", headers={"X-Qwenctl-Wake": "1"}, timeout=10
        )
        if answer.status_code not in (200, 202):
            raise _failed(f"the wake was refused ({answer.status_code}): {answer.text[:200]}")
        self._say("woken by HTTP")
        self._wait(Phase.READY, READY_SECONDS)
        self._say(f"ready: {self._durations()}")
        seen = requests.get(f"{url}/_qwenctl/api/status?gpu={GPU}", timeout=10).json()
        if not Phase(seen["phase"]).serves:
            raise _failed(f"the store says ready and the proxy says {seen['phase']}")
        picture = self._state / "sample.png"
        picture.write_bytes(sample_png())
        reply = chat(url, "What do you see?", picture, timeout=60.0)
        if not reply.text.strip():
            raise _failed("the chat gave an empty answer")
        self._say(
            f"chat through the proxy: first word after {reply.first_token_seconds:.2f} s, "
            f"{len(reply.text)} characters in {reply.seconds:.2f} s"
        )
        self._say(f"  “{shorten(reply.text.strip().splitlines()[0], 100)}”")
        used = time.monotonic()
        self._wait(Phase.OFF, IDLE_SECONDS[True] + STOP_SECONDS)
        self._say(f"off again, {time.monotonic() - used:.1f} s after the last use")
        starts = sum(
            event.kind is EventKind.CALL and event.verb == "start"
            for event in self.store.events(GPU, 500)
        )
        if starts != 1:
            raise _failed(f"the instance should have been started once, and was {starts} times")
        print(paint(f"The whole cycle took {time.monotonic() - self._began:.1f} s.", "green"))

    def _wait(self, phase: Phase, seconds: float) -> None:
        """Wait for a phase; print the phases on the way."""
        seen = self.store.snapshot(GPU).phase
        with Follower(self.store, GPU) as follower:
            deadline = time.monotonic() + seconds
            for snapshot in follower.snapshots(every=2.0, deadline=deadline):
                if snapshot.phase is phase:
                    return
                if snapshot.phase is not seen:
                    seen = snapshot.phase
                    self._say(f"  {seen.value}")
                if snapshot.phase is Phase.FAILED and snapshot.failure:
                    self._show_log()
                    raise _failed(f"{snapshot.failure.code}: {snapshot.failure.message}")
                if self._proxy and self._proxy.poll() is not None:
                    raise _failed(f"the proxy has ended: {self._last_words()}")
        self._show_log()
        raise UserError(f"not {phase.value} after {seconds:g} s but {seen.value}", ExitCode.TIMEOUT)

    def _show_log(self) -> None:
        """Print the last log lines of the node and the proxy."""
        lines = self.store.log_lines(GPU, 10)
        lines += self._log.read_text(errors="replace").splitlines()[-10:]
        for line in lines:
            warn(f"  {line}")

    def _durations(self) -> str:
        history = wakes(self.store.events(GPU, 500))
        if not history or history[-1].seconds is None:
            return ""
        steps = " + ".join(f"{step} {s:.2f} s" for step, s in history[-1].durations.items())
        return f"{steps} = {history[-1].seconds:.2f} s"

    def _say(self, text: str) -> None:
        at = f"{time.monotonic() - self._began:6.2f} s"
        print(f"{paint(at, dim=True)}  {text}", flush=True)


def _usable(port: int) -> int:
    """Return the port.

    Raises:
        ConfigError: the proxy cannot listen there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on 127.0.0.1:{port} ({error.strerror}); choose another --port, or "
                "leave it out for a free one"
            ) from None
    return port


def _program() -> str:
    """Return the command to type for `qwenctl`: its path unless it is on PATH."""
    ours = Path(sys.argv[0]).absolute()
    found = shutil.which("qwenctl")
    if found and Path(found).resolve() == ours.resolve():
        return "qwenctl"
    return shlex.quote(str(ours))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """Let the kernel end the proxy when the demo is killed; Linux only (prctl(2))."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _clear(state: Path) -> None:
    """Stop what a killed demo may have left, then remove its state."""
    _stop_leftovers(state)
    shutil.rmtree(state, ignore_errors=True)


def _stop_leftovers(state: Path) -> None:
    path = state / "qwenctl.toml"
    if path.is_file():
        with contextlib.suppress(UserError, ProviderError):
            config = load_config(str(path))
            provider = make_provider(GPU, config.gpu[GPU], config)
            deadline = time.monotonic() + 15.0
            # Nothing signals the end of a machine, so poll.
            while provider.describe().state is not Observed.STOPPED and time.monotonic() < deadline:
                provider.stop()
                time.sleep(0.1)
    # The server's keeper process and files go with it.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5.0)
        connection.connect(str(socket_path(state)))
        connection.sendall(b"SHUTDOWN NOSAVE\r\n")
        connection.recv(64)  # empty once the server has ended
