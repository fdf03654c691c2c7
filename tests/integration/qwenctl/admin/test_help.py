"""The setting-up commands explain themselves and start quickly."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.integration.qwenctl.admin.commands import Run


@pytest.mark.parametrize(
    "command",
    [
        "permissions",
        "provision",
        "provision create",
        "provision release",
        "doctor",
        "import aliyun",
        "import aws",
    ],
)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert re.search(r"Examples?:\n +\S", done.stdout), done.stdout


@pytest.mark.parametrize("command", ["permissions", "provision", "doctor", "import"])
def test_help_imports_no_sdk(command: str) -> None:
    code = (
        f"import sys; from qwenctl.cli import main; main(['{command}', '--help']);"
        "print(*[m for m in ('boto3', 'aliyunsdkcore', 'redis', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stdout
