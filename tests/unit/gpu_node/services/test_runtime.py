"""The variables that a service is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_node.services.runtime import StartFailed, service_environment
from qwenctl.protocol.messages import Service


def test_the_spec_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# tokens\n\nHF_TOKEN=a=b c\nMODEL=large\n")
    service = Service(command=("x",), env={"MODEL": "small"}, env_file=str(file))
    assert service_environment(service) == {"HF_TOKEN": "a=b c", "MODEL": "small"}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    service = Service(command=("x",), env_file=str(tmp_path / "none"))
    with pytest.raises(StartFailed, match="none: No such file"):
        service_environment(service)


def test_a_line_that_is_none_is_named_by_number_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\nexport my secret\n")
    with pytest.raises(StartFailed, match=r"env:2 is not KEY=value$"):
        service_environment(Service(command=("x",), env_file=str(file)))
