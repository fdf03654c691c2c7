"""A Valkey server of one's own, to be killed and frozen."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from qwenctl.store.embedded import _answers, _server_program

__all__ = ["ValkeyServer"]


class ValkeyServer:
    """One server on a unix socket in ``directory``; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start it, with the data it had before; returns once it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        settings = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._directory)]
        settings += ["--appendonly", "yes", "--save", "", "--loglevel", "warning"]
        self._process = subprocess.Popen([_server_program(), *settings])
        deadline = time.monotonic() + 10
        while not _answers(self._socket):
            assert self._process.poll() is None, "the Valkey server has ended"
            assert time.monotonic() < deadline, "the Valkey server does not answer"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> ValkeyServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
