"""`qwenctl-node bake` against a real Docker daemon and registry."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_node.settings import NodeSettings
from gpu_node.setup.bake import bake, check
from qwenctl.errors import UserError
from qwenctl.protocol.messages import Container, Service, Spec
from tests.support.docker_engine import IMAGE, DockerEngine, Registry

LABELS = {"qwenctl.gpu": "main", "qwenctl.service": "webui", "qwenctl.config-hash": "x"}


@pytest.fixture
def settings(tmp_path: Path, engine: DockerEngine) -> NodeSettings:
    for name in ("state", "log"):
        (tmp_path / name).mkdir()
    return NodeSettings(
        proxy_urls=("http://127.0.0.1:1",),
        gpu="main",
        state_dir=str(tmp_path / "state"),
        log_dir=str(tmp_path / "log"),
        docker_host=engine.host,
    )


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    registry = Registry()
    yield registry
    registry.close()


def keep_spec(settings: NodeSettings, **container: object) -> None:
    service = Service(
        runtime="docker",
        container=Container(gpus=(), **container),  # type: ignore[arg-type]
        stop_timeout=1.0,
    )
    spec = Spec(version="v1", services=(service,))
    Path(settings.state_dir, "spec.json").write_text(spec.model_dump_json())


def fails(settings: NodeSettings, root: Path) -> list[str]:
    found = [one for one in check(settings, root) if one.level == "fail" and one.check != "boot"]
    return [f"{one.check}: {one.found}" for one in found]


def test_a_missing_image_is_pulled(
    settings: NodeSettings, engine: DockerEngine, registry: Registry, tmp_path: Path
) -> None:
    name = registry.push(engine, IMAGE, "team/baked:1")
    with contextlib.closing(engine.client()) as client:
        keep_spec(settings, image=name)
        assert fails(settings, tmp_path) == [f"image: {name} is not here"]
        said: list[str] = []
        bake(settings, clean=False, say=said.append, root=tmp_path)
        assert said[0] == f"pulling {name}"
        assert fails(settings, tmp_path) == []
        client.remove_image(name)


def test_what_cannot_be_pulled_is_said(
    settings: NodeSettings, registry: Registry, tmp_path: Path
) -> None:
    for container in (
        {"image": f"{registry.address}/team/nothing:1"},
        {"image": "qwenctl-test:nowhere", "pull": "never"},
    ):
        keep_spec(settings, **container)
        with pytest.raises(UserError) as caught:
            bake(settings, clean=False, say=lambda _: None, root=tmp_path)
        assert container["image"].rpartition(":")[0] in str(caught.value)


@pytest.mark.parametrize("policy", ["no", "unless-stopped"])
def test_containers_end_so_that_they_start_again(
    settings: NodeSettings, engine: DockerEngine, tmp_path: Path, policy: str
) -> None:
    keep_spec(settings, image=IMAGE, restart=policy)
    with contextlib.closing(engine.client()) as client:
        made = client.create_container(
            IMAGE,
            ["8000"],
            labels=LABELS,
            host_config=client.create_host_config(restart_policy={"Name": policy}),
        )
        try:
            client.start(made["Id"])
            if policy == "no":
                assert any("runs" in line for line in fails(settings, tmp_path))
            bake(settings, clean=False, say=lambda _: None, root=tmp_path)
            running = client.inspect_container(made["Id"])["State"]["Running"]
            # Docker would not start at boot what has been stopped by hand.
            assert running == (policy == "unless-stopped")
            assert fails(settings, tmp_path) == []
        finally:
            client.remove_container(made["Id"], force=True)


def test_without_docker(settings: NodeSettings, tmp_path: Path) -> None:
    gone = settings.model_copy(update={"docker_host": f"unix://{tmp_path}/nothing.sock"})
    keep_spec(gone, image=IMAGE)
    assert any(line.startswith("docker: Docker does not answer") for line in fails(gone, tmp_path))
    with pytest.raises(UserError, match="does not answer"):
        bake(gone, clean=False, say=lambda _: None, root=tmp_path)
