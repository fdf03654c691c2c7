"""Fixtures of the command line's tests: a deployment's file, its store, the program."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwenctl.store.store import Store
from tests.integration.qwenctl.cli.program import Run, environment
from tests.support.program import PROGRAM
from tests.support.valkey_server import ValkeyServer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *args],
            cwd=tmp_path,
            env=environment(tmp_path, **env),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def config(tmp_path: Path, valkey: ValkeyServer, deployment: str) -> Path:
    """A deployment of one GPU in the file that is found by itself."""
    path = tmp_path / "qwenctl.toml"
    path.write_text(
        f'deployment = "{deployment}"\nstate_dir = "{tmp_path}/st"\nredis_url = "{valkey.url}"\n'
        "[gpu.main]\n"
    )
    return path


@pytest.fixture
def live(client: Any, deployment: str) -> Store:
    """The same deployment's store on the server's own clock, as the program has it."""
    return Store(client, deployment)
