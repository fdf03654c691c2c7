from __future__ import annotations

import subprocess
import sys

ALLOWED = {
    "qwenctl",
    "qwenctl.errors",
    "qwenctl.lib",
    "qwenctl.lib.extras",
    "qwenctl.lib.http_probe",
    "qwenctl.lib.private_file",
    "qwenctl.lib.programs",
    "qwenctl.lib.redaction",
    "qwenctl.lib.settings_file",
    "qwenctl.lib.settings_types",
    "qwenctl.lib.text",
    "qwenctl.lib.version",
    "qwenctl.protocol",
    "qwenctl.protocol.messages",
    "qwenctl.protocol.signing",
}


def test_the_agent_needs_only_the_wire_format_of_qwenctl() -> None:
    script = (
        "import sys, gpu_node.__main__\n"
        "print(*[m for m in sys.modules if m.partition('.')[0] in ('qwenctl', 'redis', 'flask', 'rich', 'typer')"
        " or m.startswith('gpu_node.setup.')])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(shown.stdout.split()) == ALLOWED
