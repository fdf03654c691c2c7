"""Write config files from plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["toml"]


def toml(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A config file from plain values; JSON's spelling of scalars and lists is TOML's too."""
    lines, tables = [], []
    for key, value in table.items():
        inner = (*path, json.dumps(key))
        if isinstance(value, Mapping):
            tables.append(f"[{'.'.join(inner)}]\n{toml(value, inner)}")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            tables += [f"[[{'.'.join(inner)}]]\n{toml(item, inner)}" for item in value]
        else:
            lines.append(f"{json.dumps(key)} = {json.dumps(value)}\n")
    return "".join(lines) + "".join(tables)
