from __future__ import annotations

import importlib.metadata
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qwenctl.clouds.local.provider import LocalProvider
from qwenctl.clouds.registry import ENTRY_POINTS
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.providers import make_provider
from qwenctl.errors import ConfigError


def test_local_is_made_with_a_secret_file_only_the_owner_can_read(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path))
    provider = make_provider("main", GpuConfig(), config)
    assert isinstance(provider, LocalProvider)
    assert provider.directory == tmp_path / "instances" / "default" / "main"
    assert stat.S_IMODE((tmp_path / "node.secret").stat().st_mode) == 0o600


def test_an_unknown_provider_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"gpu\.main\.provider = 'azur'.*known: aliyun, aws, local"
    ):
        make_provider("main", GpuConfig(provider="azur"), Config(state_dir=str(tmp_path)))


@pytest.mark.parametrize("name", ["aliyun", "aws"])
def test_a_cloud_without_an_instance_says_which_key_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"gpu\.main\.{name}\."):
        make_provider("main", GpuConfig(provider=name), Config(state_dir=str(tmp_path)))


def test_somebody_elses_provider_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site"
    info = package / "qwenctl_mycloud-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qwenctl-mycloud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\nmycloud = qwenctl_mycloud\nbroken = qwenctl_broken\n"
    )
    (package / "qwenctl_mycloud.py").write_text(
        "class MyCloud:\n"
        "    call_timeout = observe_interval = 1.0\n"
        "    def __init__(self, name): self.name = name\n"
        "def make(settings, context): return MyCloud(context.gpu)\n"
    )
    monkeypatch.syspath_prepend(package)
    importlib.metadata.MetadataPathFinder().invalidate_caches()
    config = Config(state_dir=str(tmp_path))
    provider = make_provider("main", GpuConfig(provider="mycloud"), config)
    assert provider.name == "main"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="cannot load qwenctl_broken"):
        make_provider("main", GpuConfig(provider="broken"), config)
    with pytest.raises(ConfigError, match="known: aliyun, aws, broken, local, mycloud"):
        make_provider("main", GpuConfig(provider="other"), config)


def test_the_package_loads_no_provider_by_itself() -> None:
    script = "import sys, qwenctl.clouds.registry; print(*sorted(m for m in sys.modules if 'qwenctl' in m))"
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == [
        "qwenctl",
        "qwenctl.clouds",
        "qwenctl.clouds.registry",
        "qwenctl.errors",
    ]
