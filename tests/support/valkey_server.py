"""A real Valkey server for tests, one process a server."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import redis

from qwenctl.store.embedded import _server_program

__all__ = ["ValkeyServer"]


class ValkeyServer:
    """A server with a directory of its own, as a context manager.

    It listens on the unix socket `socket`, or with ``port`` on that port of 127.0.0.1 instead.
    Further arguments are settings of valkey.conf, underscores for hyphens.
    """

    def __init__(self, *, port: int = 0, sentinel: str = "", **settings: str) -> None:
        # Not pytest's tmp_path: a unix socket's path is limited to about 100 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="valkey-"))
        self.port = port
        self.socket = self.directory / "valkey.sock"
        everything = {"port": str(port), "save": "", "dir": str(self.directory), **settings}
        if port:
            everything["bind"] = "127.0.0.1"
        else:
            everything["unixsocket"] = str(self.socket)
        lines = [f'{name.replace("_", "-")} "{value}"' for name, value in everything.items()]
        self._file = self.directory / "valkey.conf"  # a Sentinel rewrites it
        self._file.write_text("\n".join([*lines, sentinel]) + "\n")
        self._arguments = [
            _server_program(),
            str(self._file),
            *(["--sentinel"] if sentinel else []),
        ]
        self._password = settings.get("requirepass")
        self.process = self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server (anew) and wait until it answers."""
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(self._arguments, stdout=log, stderr=log)
        client = self.client()
        for _ in range(500):
            try:
                client.ping()
                return self.process
            except redis.RedisError:
                assert self.process.poll() is None, (self.directory / "log").read_text()
                time.sleep(0.01)
        raise AssertionError((self.directory / "log").read_text())

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True, password=self._password)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> ValkeyServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
