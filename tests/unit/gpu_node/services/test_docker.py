"""What the Docker runtime makes of the daemon's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_node.services.docker import DockerRuntime
from qwenctl.protocol.messages import Container, Service

pytest.importorskip("docker")


class Output:
    def line(self, text: str) -> None:
        pass

    def progress(self, progress: object) -> None:
        pass


class RestartedByDocker:
    """A daemon whose restart policy has started the container again before `wait` answers."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events
        self.stopped = False

    def wait(self, container: str, timeout: None) -> dict[str, int]:
        return {"StatusCode": 0}

    def events(self, **which: Any) -> list[dict[str, Any]]:
        assert which["since"] <= which["until"]
        assert which["filters"]["event"] == "die"
        return self._events

    def inspect_container(self, container: str) -> dict[str, Any]:
        return {"State": {"Running": True, "ExitCode": 0}}

    def stop(self, container: str, timeout: int) -> None:
        self.stopped = True


def test_a_clock_that_is_set_back_hides_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker refuses to look for events from a time to one before it."""
    box = Container(image="webui", restart="unless-stopped")
    service = Service(runtime="docker", container=box)
    run = DockerRuntime("main", tmp_path).start(service, Output())
    run._client = RestartedByDocker([])
    times = iter((10_000.0, 6_400.0))
    monkeypatch.setattr("gpu_node.services.docker.time.time", lambda: next(times))
    assert run._wait_for_exit() == "exit code 0"


@pytest.mark.parametrize(
    ("events", "how"),
    [
        ([{"Actor": {"Attributes": {"exitCode": "4"}}}], "exit code 4"),
        ([], "exit code 0"),
    ],
)
def test_the_exit_code_is_that_of_the_end_and_not_of_the_next_run(
    tmp_path: Path, events: list[dict[str, Any]], how: str
) -> None:
    box = Container(image="webui", restart="unless-stopped")
    service = Service(runtime="docker", container=box)
    run = DockerRuntime("main", tmp_path).start(service, Output())
    run._client = client = RestartedByDocker(events)
    assert run._wait_for_exit() == how
    assert client.stopped
