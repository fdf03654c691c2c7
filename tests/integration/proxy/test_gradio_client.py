"""The real ``gradio_client`` before a Gradio app that sleeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.proxy.running import KEY, RunningProxy, gpu, password_access, running
from tests.support.net import free_port
from tests.support.paths import ROOT

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")

pytestmark = pytest.mark.slow

WITH_KEY = {"Authorization": f"Bearer {KEY}"}
PATIENT = {"timeout": 120}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """A proxy with access control before a Gradio app, whose GPU is off."""
    port = free_port()
    service = {
        "command": [sys.executable, str(ROOT / "tests" / "support" / "gradio_app.py"), str(port)],
        "port": port,
        "stop_timeout": 1,
        "readiness": {"path": "/config", "interval": 0.2},
        "env": {"GRADIO_ANALYTICS_ENABLED": "False"},
    }
    gpus = {"main": gpu(preset="gradio", service=[service], local={"boot_seconds": 6})}
    with running(tmp_path_factory.mktemp("app"), gpu=gpus, access=password_access()) as proxy:
        yield proxy


def client(proxy: RunningProxy, **options: Any) -> Any:
    return gradio_client.Client(
        proxy.url(), verbose=False, analytics_enabled=False, download_files=False, **options
    )


def test_without_a_key_nothing_wakes(app: RunningProxy) -> None:
    with pytest.raises(gradio_client.exceptions.AuthenticationError):
        client(app)
    assert app.untouched()


def test_a_client_with_a_key_wakes_the_app_and_is_held(app: RunningProxy, tmp_path: Path) -> None:
    with pytest.raises(httpx.ReadTimeout):  # after its own 5 s; the GPU has been woken
        client(app, headers=WITH_KEY)
    assert app.snapshot().wanted
    patient = client(app, headers=WITH_KEY, httpx_kwargs=PATIENT)
    assert patient.predict(0.2, api_name="/slow") == 0.2
    # The same client, over a sleep.
    app.store.release("main", actor="test")
    app.wait_for("off", seconds=40)
    assert patient.predict(0.1, api_name="/slow") == 0.1
    assert app.snapshot().phase.serves
    patient.close()
