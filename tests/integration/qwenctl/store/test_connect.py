"""Every kind of `redis_url`, against real servers; and what is said when it does not work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.errors import ConfigError, ExitCode, StoreAuthError, StoreUnavailable
from qwenctl.store.connect import connect
from qwenctl.store.store import Store, open_store
from tests.support.net import free_port
from tests.support.tls_front import TlsFront, make_certificate
from tests.support.valkey_server import ValkeyServer

GPU = "main"
PASSWORD = "pass:word/with@signs"
QUOTED = "pass%3Aword%2Fwith%40signs"


def works(store: Store) -> bool:
    store.pin(GPU, "pin:ada", 60, reason="up", actor="ada")
    return store.snapshot(GPU).wanted


@pytest.fixture(scope="module")
def locked() -> Iterator[ValkeyServer]:
    """A server on TCP that wants a password, and knows one user."""
    with ValkeyServer(port=free_port(), requirepass=PASSWORD) as server:
        cast(Any, server.client()).execute_command(
            "ACL", "SETUSER", "gpu", "on", f">{PASSWORD}", "~*", "&*", "+@all"
        )
        yield server


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "redis.password"
    path.write_text(PASSWORD + "\n")
    return path


class TestTcp:
    def test_password_in_a_file(self, locked: ValkeyServer, password_file: Path) -> None:
        config = Config(redis_url=f"{locked.url}/0", redis_password_file=str(password_file))
        assert works(open_store(config))

    def test_password_in_the_url(self, locked: ValkeyServer) -> None:
        assert works(open_store(Config(redis_url=f"redis://:{QUOTED}@127.0.0.1:{locked.port}/0")))

    def test_user_in_the_url(self, locked: ValkeyServer) -> None:
        url = f"redis://gpu:{QUOTED}@127.0.0.1:{locked.port}/0"
        assert works(open_store(Config(redis_url=url)))

    def test_another_database_is_another_store(self, locked: ValkeyServer) -> None:
        for database in (1, 2):
            url = f"redis://:{QUOTED}@127.0.0.1:{locked.port}/{database}"
            store = open_store(Config(redis_url=url))
            assert not store.snapshot(GPU).leases
            assert works(store)

    @pytest.mark.parametrize("login", ["", ":sesame-1234@", "gpu:sesame-1234@", "eve:sesame-1234@"])
    def test_wrong_password(self, locked: ValkeyServer, login: str) -> None:
        config = Config(redis_url=f"redis://{login}127.0.0.1:{locked.port}/0")
        with pytest.raises(StoreAuthError) as caught:
            open_store(config)
        assert caught.value.exit_code is ExitCode.DENIED
        text = str(caught.value)
        assert f"127.0.0.1:{locked.port}" in text
        assert "redis_password_file" in text
        assert "sesame" not in text
        assert "\n" not in text

    def test_unreachable(self) -> None:
        port = free_port()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            open_store(Config(redis_url=f"redis://:sesame-1234@127.0.0.1:{port}/0"))
        assert time.monotonic() - began < 5
        assert caught.value.exit_code is ExitCode.UNAVAILABLE
        assert not isinstance(caught.value, StoreAuthError)
        assert f"127.0.0.1:{port}" in str(caught.value)
        assert "sesame" not in str(caught.value)

    def test_no_such_host(self) -> None:
        with pytest.raises(StoreUnavailable, match=r"redis.invalid:6379"):
            open_store(Config(redis_url="redis://redis.invalid:6379/0"))

    def test_a_server_that_does_not_answer(self, locked: ValkeyServer) -> None:
        """Stopped, not dead: every call ends in bounded time."""
        import os
        import signal

        url = f"redis://:{QUOTED}@127.0.0.1:{locked.port}/0?socket_timeout=0.2"
        store = open_store(Config(redis_url=url))
        os.kill(locked.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                store.snapshot(GPU)
            assert time.monotonic() - began < 5
        finally:
            os.kill(locked.process.pid, signal.SIGCONT)
        assert works(store)


class TestUnixSocket:
    def test_it_works(self, valkey: ValkeyServer) -> None:
        assert works(open_store(Config(redis_url=valkey.url, deployment="unix")))

    def test_nobody_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match=r"nobody.sock"):
            open_store(Config(redis_url=f"unix://{tmp_path}/nobody.sock"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def front(certificate: tuple[Path, Path], valkey: ValkeyServer) -> Iterator[TlsFront]:
    front = TlsFront(*certificate, valkey.socket)
    yield front
    front.close()


class TestTls:
    def test_it_works(self, front: TlsFront, certificate: tuple[Path, Path]) -> None:
        url = f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={certificate[0]}"
        store = open_store(Config(redis_url=url, deployment="tls"))
        assert works(store)
        store.close()

    def test_an_unknown_certificate_is_refused(self, front: TlsFront) -> None:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate") as caught:
            open_store(Config(redis_url=f"rediss://:sesame-1234@127.0.0.1:{front.port}/0"))
        assert "sesame" not in str(caught.value)

    def test_a_server_without_tls(self, locked: ValkeyServer) -> None:
        with pytest.raises(StoreUnavailable):
            open_store(Config(redis_url=f"rediss://127.0.0.1:{locked.port}/0?socket_timeout=0.2"))


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "text"),
        [
            ("redis://:sesame@127.0.0.1:port/0", r"redis_url \(redis://…\) cannot be used"),
            ("redis+sentinel://:sesame@127.0.0.1:port/x", r"redis_url \(redis\+sentinel://…\)"),
        ],
    )
    def test_bad_ones(self, url: str, text: str) -> None:
        with pytest.raises(ConfigError, match=text) as caught:
            connect(Config(redis_url=url))
        assert "sesame" not in str(caught.value)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("url", ["http://:sesame@127.0.0.1/0", "127.0.0.1:6379", "foo"])
    def test_other_schemes(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"redis_url.*unknown scheme.*use redis://") as caught:
            load_config(env={"QWENCTL_REDIS_URL": url})
        assert "sesame" not in str(caught.value)

    def test_a_password_file_that_is_not_there(self, tmp_path: Path) -> None:
        config = Config(redis_url="redis://x", redis_password_file=str(tmp_path / "none"))
        with pytest.raises(ConfigError, match=r"redis_password_file: cannot read .*none"):
            connect(config)


@pytest.fixture
def cluster() -> Iterator[tuple[ValkeyServer, ValkeyServer, list[ValkeyServer]]]:
    """A master, its replica, and three Sentinels that watch them, all with a password."""
    with ExitStack() as stack:
        login = {"requirepass": PASSWORD, "masterauth": PASSWORD}
        master = stack.enter_context(ValkeyServer(port=free_port(), **login))
        replica = stack.enter_context(
            ValkeyServer(port=free_port(), replicaof=f"127.0.0.1 {master.port}", **login)
        )
        watch = "\n".join(
            [
                f"sentinel monitor gpu 127.0.0.1 {master.port} 2",
                f'sentinel auth-pass gpu "{PASSWORD}"',
                "sentinel down-after-milliseconds gpu 500",
                "sentinel failover-timeout gpu 3000",
            ]
        )
        sentinels = [
            stack.enter_context(ValkeyServer(port=free_port(), sentinel=watch)) for _ in range(3)
        ]
        deadline = time.monotonic() + 20
        while any(
            (seen := cast(Any, sentinel.client()).sentinel_master("gpu"))["num-slaves"] < 1
            or seen["num-other-sentinels"] < 2
            for sentinel in sentinels
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield master, replica, sentinels


@pytest.mark.slow
def test_sentinel_and_failover(
    cluster: tuple[ValkeyServer, ValkeyServer, list[ValkeyServer]], password_file: Path
) -> None:
    master, replica, sentinels = cluster
    places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    store = open_store(Config(redis_url=f"redis+sentinel://:{QUOTED}@{places}/gpu/0"))
    assert works(store)
    by_file = Config(
        redis_url=f"redis+sentinel://{places}/gpu", redis_password_file=str(password_file)
    )
    assert open_store(by_file).snapshot(GPU).wanted
    with pytest.raises(StoreAuthError, match="sentinel service gpu"):
        open_store(Config(redis_url=f"redis+sentinel://{places}/gpu"))
    with pytest.raises(StoreUnavailable, match="sentinel service other"):
        open_store(Config(redis_url=f"redis+sentinel://{places}/other"))

    copy = replica.client()
    deadline = time.monotonic() + 20
    while not copy.exists(store.keys(GPU)[1]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    master.kill()
    with pytest.raises(StoreUnavailable):
        store.snapshot(GPU)
    deadline = time.monotonic() + 30
    while True:  # until the Sentinels have agreed on the replica
        try:
            assert store.snapshot(GPU).wanted  # nothing is lost
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert works(store)
    role: list[object] = cast(Any, copy).execute_command("ROLE")
    assert role[0] in ("master", b"master")


def test_no_sentinel_answers() -> None:
    with pytest.raises(StoreUnavailable, match="sentinel service gpu") as caught:
        open_store(Config(redis_url=f"redis+sentinel://:sesame-1@127.0.0.1:{free_port()}/gpu"))
    assert "sesame" not in str(caught.value)


def test_a_server_that_cannot_write(locked: ValkeyServer) -> None:
    """No memory left: one sentence, no password."""
    admin = locked.client()
    store = open_store(Config(redis_url=f"redis://:{QUOTED}@127.0.0.1:{locked.port}/0"))
    admin.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="memory") as caught:
            store.pin(GPU, "pin:x", 9, reason="up", actor="ada")
        assert PASSWORD not in str(caught.value)
    finally:
        admin.config_set("maxmemory", "0")
