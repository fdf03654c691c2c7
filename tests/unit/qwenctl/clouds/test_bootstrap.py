"""The script that puts qwenctl onto an instance is run by a real shell, with distributions made of
stand-in programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenctl.clouds.plan import install_package, look_for_docker

OLD = "exit 1"
NEW = """case "$1" in
  -c) exit 0 ;;
  -m) mkdir -p "$3/bin"
      printf '#!/bin/sh\\nexit 0\\n' > "$3/bin/python"
      printf '#!/bin/sh\\necho "pip: $*"\\n' > "$3/bin/pip"
      echo "made with ${0##*/}"
      chmod +x "$3/bin/"* ;;
esac"""


class Distribution:
    """A directory of programs."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.venv = directory / "opt" / "qwenctl"
        for name in ("mkdir", "chmod"):
            (self.bin / name).symlink_to(f"/bin/{name}")

    def add(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, package: str = "qwenctl[node]==1.0") -> subprocess.CompletedProcess[str]:
        script = "set -eu\n" + install_package(str(self.venv), package)
        return subprocess.run(
            ["/bin/sh", "-c", script], env={"PATH": str(self.bin)}, capture_output=True, text=True
        )


@pytest.fixture
def distribution(tmp_path: Path) -> Distribution:
    return Distribution(tmp_path)


def test_a_good_python_is_taken(distribution: Distribution) -> None:
    distribution.add("python3", NEW)
    done = distribution.run()
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "made with python3",
        "pip: install --quiet --upgrade qwenctl[node]==1.0",
    ]


def test_run_again_it_upgrades(distribution: Distribution) -> None:
    distribution.add("python3", NEW)
    distribution.run()
    done = distribution.run("qwenctl[node]==1.1")
    assert done.stdout == "pip: install --quiet --upgrade qwenctl[node]==1.1\n"


def test_a_newer_one_beside_an_old_one_is_found(distribution: Distribution) -> None:
    distribution.add("python3", OLD)
    distribution.add("python3.11", NEW)
    assert "made with python3.11" in distribution.run().stdout


@pytest.mark.parametrize(
    ("manager", "asked"),
    [
        ("dnf", "install -y python3.11 python3.11-pip"),
        ("yum", "install -y python3.11 python3.11-pip"),
        ("apt-get", "install -y python3 python3-venv"),
    ],
)
def test_an_old_one_alone_has_a_newer_one_installed(
    distribution: Distribution, manager: str, asked: str
) -> None:
    distribution.add("python3", OLD)
    package = "python3" if manager == "apt-get" else "python3.11"
    made = f'printf "#!/bin/sh\\n%s\\n" "$NEW" > "{distribution.bin}/{package}"'
    chmod = f'chmod +x "{distribution.bin}/{package}"'
    distribution.add(
        manager, f"NEW='{NEW.replace(chr(39), chr(34))}'\necho \"$@\"\n{made}\n{chmod}"
    )
    done = distribution.run()
    assert asked in done.stderr
    assert f"made with {package}" in done.stdout
    assert done.returncode == 0


def test_where_there_is_none_it_says_what_to_do(distribution: Distribution) -> None:
    distribution.add("python3", OLD)
    done = distribution.run()
    assert done.returncode == 1
    assert done.stderr.endswith("install one, such as python3.11\n")


@pytest.mark.slow
def test_with_this_python_for_real(distribution: Distribution) -> None:
    (distribution.bin / "python3").symlink_to(os.path.realpath(sys.executable))
    # pip itself is the package: it is there, so nothing is downloaded.
    script = install_package(str(distribution.venv), "pip").replace("--upgrade", "--no-index")
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": str(distribution.bin)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (distribution.venv / "bin" / "pip").exists()


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ((), "docker nvidia-container-toolkit"),
        (("docker",), "nvidia-container-toolkit"),
        (("nvidia-ctk",), "docker"),
        (("docker", "nvidia-ctk"), ""),
    ],
)
def test_what_containers_need_is_said(
    distribution: Distribution, there: tuple[str, ...], missing: str
) -> None:
    for name in there:
        distribution.add(name, "exit 0")
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", look_for_docker("qwenctl-node install --user 'a b'")],
        env={"PATH": str(distribution.bin)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")
    if not missing:
        assert done.stderr == ""
        return
    [line] = done.stderr.splitlines()
    assert f"missing: {missing}. " in line
    assert line.endswith("run again: qwenctl-node install --user 'a b'")
