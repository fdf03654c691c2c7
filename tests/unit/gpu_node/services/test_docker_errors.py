"""What is said of a Docker daemon that does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.services.docker import DockerRuntime
from gpu_node.services.docker_errors import error_text as _words

docker_errors = pytest.importorskip("docker.errors")


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unix:///nonexistent/docker.sock", "No such file or directory"),
        ("tcp://127.0.0.1:1", "Connection refused"),
    ],
)
def test_the_innermost_reason_is_given_in_words(host: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(docker_errors.DockerException) as caught:
        DockerRuntime("main", tmp_path, host=host).client()
    assert _words(caught.value) == said
    # Also where only the arguments of the exception still have it.
    wrapped = Exception("failed", OSError(2, "No such file or directory"))
    assert _words(wrapped) == "No such file or directory"


def test_an_error_without_the_system_behind_it_speaks_for_itself() -> None:
    assert _words(ValueError("odd\nanswer")) == "odd answer"
