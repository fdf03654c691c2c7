"""Build hook: the wheel carries proxy/ under the import name `qwenctl_proxy`.

Why: docs/decisions/0001-the-name-proxy.md. An editable install keeps the folder where it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        for folder, target in (
            ("proxy", "qwenctl_proxy"),
            ("examples/webui", "qwenctl/demo_webui"),
        ):
            for path in sorted((root / folder).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    inside = path.relative_to(root / folder).as_posix()
                    build_data["force_include"][str(path)] = f"{target}/{inside}"
