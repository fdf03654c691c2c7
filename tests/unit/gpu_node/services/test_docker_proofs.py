"""Which containers are this node's, by what Docker says of them and of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_node.services.docker_ownership import LOG_OPTIONS, PROOF_LABEL, Ownership, container_key

errors = pytest.importorskip("docker.errors")

OURS = Ownership("main", b"key")
DIGEST = "0123456789abcdef"


class Client:
    """A daemon with one image, or none."""

    def __init__(self, labels: dict[str, str] | None) -> None:
        self._labels = labels

    def inspect_image(self, image: str) -> dict[str, Any]:
        if self._labels is None:
            raise errors.NotFound("no such image")
        return {"Config": {"Labels": self._labels}}


def container(labels: dict[str, str], name: str = "/qwenctl-main-webui") -> dict[str, Any]:
    logs = {"Type": "json-file", "Config": LOG_OPTIONS}
    return {
        "Name": name,
        "Image": "sha256:1",
        "Config": {"Labels": labels},
        "HostConfig": {"LogConfig": logs},
    }


@pytest.mark.parametrize("image", [{}, {"maintainer": "ada"}, None], ids=str)
def test_a_proof_holds_whether_the_image_is_there_or_gone(image: dict[str, str] | None) -> None:
    found = container(OURS.labels("webui", DIGEST))
    assert OURS.owns(Client(image), found)
    assert not OURS.owns(Client(image), {**found, "Name": "/qwenctl-main-other"})
    assert not Ownership("main", b"another").owns(Client(image), found)
    assert not Ownership("second", b"key").owns(Client(image), found)


def test_an_earlier_versions_container_needs_its_image_to_be_known() -> None:
    labels = OURS.labels("webui", DIGEST)
    del labels[PROOF_LABEL]
    assert OURS.owns(Client({}), container(labels))
    assert not OURS.owns(Client(None), container(labels))
    assert not OURS.owns(Client(labels), container(labels))  # they are the image's


def test_a_proof_that_the_image_has_too_proves_nothing() -> None:
    labels = OURS.labels("webui", DIGEST)
    assert not OURS.owns(Client(labels), container(labels))


def test_the_key_of_the_containers_outlives_the_node_secret(tmp_path: Path) -> None:
    file = tmp_path / "containers.key"
    first = container_key(file, "the first secret of this node")
    assert container_key(file, "another secret, after a rotation") == first
    assert container_key(tmp_path / "other.key", "another secret, after a rotation") != first
    assert file.stat().st_mode & 0o077 == 0
