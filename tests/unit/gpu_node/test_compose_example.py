"""The compose example: what its files say of each other is true."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gpu_node.settings import load_settings
from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "node-compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())


@pytest.mark.parametrize("name", ["agent", "watchdog"])
def test_the_settings_fit_the_mounts(name: str) -> None:
    settings = load_settings(str(FOLDER / "node.toml"), {})
    service = COMPOSE["services"][name]
    mounts = dict(
        volume.rsplit(":ro", 1)[0].rsplit(":", 1)[::-1] for volume in service["volumes"][:4]
    )
    assert mounts[settings.state_dir] in COMPOSE["volumes"]
    assert mounts[settings.log_dir] in COMPOSE["volumes"]
    assert mounts["/etc/qwenctl/node.toml"] == "./node.toml"
    [secret] = service["secrets"]
    assert settings.node_secret_file == f"/run/secrets/{secret}"
    assert secret in COMPOSE["secrets"]


def test_the_agent_and_the_watchdog_see_the_same() -> None:
    agent, watchdog = COMPOSE["services"]["agent"], COMPOSE["services"]["watchdog"]
    for key in ("volumes", "network_mode", "secrets", "build", "image"):
        assert agent[key] == watchdog[key]
    assert agent["cap_drop"] == ["ALL"]


def test_compose_itself_accepts_it(tmp_path: Path) -> None:
    command = next(
        (
            words
            for words in (["docker", "compose"], ["docker-compose"])
            if shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True).returncode == 0
        ),
        None,
    )
    if command is None:
        pytest.skip("this machine cannot check it: no Docker Compose")
    for file in FOLDER.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "node.secret").write_text("x\n")
    done = subprocess.run(
        [*command, "config", "--format", "json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown["services"]) == {"agent", "watchdog"}
