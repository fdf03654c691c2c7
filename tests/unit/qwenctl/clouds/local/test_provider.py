"""Looks of the local provider that fail: unknown is not stopped."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwenctl.clouds.base import Transient
from qwenctl.clouds.local import machine
from qwenctl.clouds.local.machine import Record
from qwenctl.clouds.local.provider import LocalProvider
from qwenctl.clouds.local.settings import LocalConfig
from qwenctl.core.phase import Observed


@pytest.fixture
def running(tmp_path: Path) -> LocalProvider:
    """An instance whose machine is this process; nothing may signal it."""
    provider = LocalProvider(gpu="main", config=LocalConfig(), state_dir=tmp_path, proxy_urls=[])
    provider.directory.mkdir()
    Record(provider.directory).write(boot_id="a" * 8, state="running", pid=os.getpid())
    assert provider.describe().state is Observed.RUNNING
    return provider


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let this process open nothing."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def no_call(*_: Any, **__: Any) -> Any:
    raise AssertionError("it must not act on what it does not know")


CALLS: list[Callable[[LocalProvider], Any]] = [
    LocalProvider.describe,
    LocalProvider.start,
    LocalProvider.stop,
]


@pytest.mark.parametrize("call", CALLS)
def test_without_descriptors_nothing_is_known_and_nothing_is_done(
    running: LocalProvider, monkeypatch: pytest.MonkeyPatch, call: Callable[[LocalProvider], Any]
) -> None:
    monkeypatch.setattr(os, "kill", no_call)
    monkeypatch.setattr(running, "_spawn", no_call)
    with no_descriptors(), pytest.raises(Transient, match="Too many open files"):
        call(running)
    assert running.describe().state is Observed.RUNNING


@pytest.mark.parametrize(
    "content", [b"", b'{"state": "run', b"[]", b"null", b'{"state": "on", "pid": 1}', b'{"pid": 1}']
)
@pytest.mark.parametrize("call", CALLS)
def test_a_damaged_record_is_not_a_stopped_instance(
    running: LocalProvider,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[LocalProvider], Any],
    content: bytes,
) -> None:
    monkeypatch.setattr(os, "kill", no_call)
    monkeypatch.setattr(running, "_spawn", no_call)
    (running.directory / "status.json").write_bytes(content)
    with pytest.raises(Transient, match=r"the record is damaged.*status\.json"):
        call(running)


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_process_that_cannot_be_looked_at_is_not_dead(
    running: LocalProvider, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    def born(_: int) -> str:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(machine, "_born", born)
    with pytest.raises(Transient, match="cannot look at the local instance"):
        running.describe()


def test_a_machine_that_cannot_read_its_record_goes_on(running: LocalProvider) -> None:
    """It ended itself, and the work on it, as if its directory had been removed."""
    options = type("Options", (), {"directory": running.directory, "boot_id": "a" * 8})
    here = machine.Machine(options)  # type: ignore[arg-type]
    assert not here._is_lost()
    with no_descriptors():
        assert not here._is_lost()
    (running.directory / "status.json").write_text(json.dumps({}))
    assert not here._is_lost(), "damaged"
    (running.directory / "status.json").unlink()
    assert here._is_lost()
