"""`qwenctl node`: nothing of the folder it is called in is run, as root perhaps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("program", [True, False], ids=["program", "no-program"])
def test_it_runs_the_installed_agent_and_not_the_current_folder(
    tmp_path: Path, program: bool
) -> None:
    foreign = tmp_path / "here" / "gpu_node"
    foreign.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "../json.py"):
        (foreign / name).write_text("raise SystemExit('code of the current folder was run')\n")
    python = sys.executable
    if not program:  # the same environment, without its programs
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").symlink_to(Path(sys.executable).resolve())
        (tmp_path / "lib").symlink_to(BIN.parent / "lib")
        (tmp_path / "pyvenv.cfg").write_text((BIN.parent / "pyvenv.cfg").read_text())
        python = str(tmp_path / "bin" / "python")
    done = subprocess.run(
        [python, BIN / "qwenctl", "node", "doctor", "--help"],
        cwd=foreign.parent,
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout
    assert "current folder" not in done.stderr
