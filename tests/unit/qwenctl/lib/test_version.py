"""The version's build is the same wherever one commit is installed, and another for each other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import qwenctl
from gpu_node.__main__ import main
from qwenctl.lib.version import build_of, full_version

ROOT = Path(qwenctl.__file__).resolve().parent.parent


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Lay the packages out as a wheel does."""
    for name, folder in (
        ("qwenctl", "qwenctl"),
        ("gpu_node", "gpu_node"),
        ("proxy", "qwenctl_proxy"),
    ):
        shutil.copytree(ROOT / name, tmp_path / folder)
    (tmp_path / "qwenctl" / "demo_webui").mkdir()
    (tmp_path / "qwenctl" / "demo_webui" / "app.py").touch()
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "somebody_elses.py").touch()
    return tmp_path


def test_checkout_and_wheel_have_one_build(site: Path) -> None:
    assert build_of(site) == build_of(ROOT)
    assert full_version() == f"{qwenctl.__version__}+{build_of(ROOT)}"


@pytest.mark.parametrize(
    "what", ["qwenctl/errors.py", "qwenctl_proxy/app.py", "qwenctl/store/lua/hello.lua"]
)
def test_each_change_is_another_build(site: Path, what: str) -> None:
    with (site / what).open("a") as file:
        file.write("\n")
    assert build_of(site) != build_of(ROOT)


def test_what_python_writes_beside_them_is_no_change(site: Path) -> None:
    (site / "qwenctl" / "__pycache__").mkdir(exist_ok=True)
    (site / "qwenctl" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    assert build_of(site) == build_of(ROOT)


def test_the_agent_says_its_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}\n", capsys.readouterr().out)
