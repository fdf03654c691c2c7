"""The command line as a real process, in front of both fake clouds over HTTP."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.qwenctl.admin.commands import Run, WholeCloud
from tests.support.fake_ecs import FakeEcs
from tests.support.faults import FaultProxy
from tests.support.moto_cloud import CREDENTIALS, MotoCloud
from tests.support.program import PROGRAM, inherited
from tests.support.valkey_server import ValkeyServer


@pytest.fixture
def cloud() -> WholeCloud:
    return WholeCloud()


@pytest.fixture
def ecs(cloud: WholeCloud) -> Iterator[FakeEcs]:
    with FakeEcs(cloud) as fake:
        yield fake


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoCloud]:
    with MotoCloud(tmp_path_factory.mktemp("moto") / "moto.log") as server:
        yield server


@pytest.fixture
def ec2(moto: MotoCloud) -> Iterator[FaultProxy]:
    """EC2's endpoint, in which calls can be made to go wrong."""
    with FaultProxy(moto.url) as faults:
        yield faults


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`qwenctl` with credentials for both clouds and nothing of this machine's settings."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = inherited("XDG_", "AWS_", "ALIBABA_", "NO_COLOR", "FORCE_COLOR")
        clean |= CREDENTIALS
        clean |= {
            "HOME": str(tmp_path),
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAI5tFakeKeyId00",
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "fake-secret-00",
            "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        clean |= env
        done = subprocess.run(
            [PROGRAM, *args],
            cwd=tmp_path,
            env={name: value for name, value in clean.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        for text in (done.stdout, done.stderr):  # never, whatever happens
            assert "Traceback" not in text
            for secret in ("fake-secret-00", "LTAI5tFakeKeyId00", "Signature="):
                assert secret not in text
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
                assert CREDENTIALS[name] not in text
        return done

    return run


@pytest.fixture
def configure(tmp_path: Path, valkey: ValkeyServer, deployment: str) -> Callable[..., Path]:
    """Writes qwenctl.toml with these GPUs' tables."""

    def configure(gpus: str, *, node_url: str = "http://10.0.0.5:8080", top: str = "") -> Path:
        path = tmp_path / "qwenctl.toml"
        path.write_text(
            f'deployment = "{deployment}"\nredis_url = "{valkey.url}"\n{top}\n'
            f'[proxy]\nnode_urls = ["{node_url}"]\n{gpus}'
        )
        return path

    return configure
