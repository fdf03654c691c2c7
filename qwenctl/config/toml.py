"""Write values as TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def to_toml(data: Mapping[str, Any]) -> str:
    """Write JSON data as TOML, which has no None: such keys are left out."""
    return "\n".join(_toml_table(data, ())).strip()


def _toml_table(data: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables = {k: v for k, v in data.items() if isinstance(v, dict) and v}
    lists = {k: v for k, v in data.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    for key, value in data.items():
        if key not in tables and key not in lists and value is not None:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in tables.items():
        inner = (*path, key)
        yield from ("", f"[{'.'.join(map(_toml_key, inner))}]")
        yield from _toml_table(value, inner)
    for key, items in lists.items():
        inner = (*path, key)
        for item in items:
            yield from ("", f"[[{'.'.join(map(_toml_key, inner))}]]")
            yield from _toml_table(item, inner)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return (
            "{}"
            if not value
            else f"{{ {', '.join(f'{_toml_key(k)} = {_toml_value(v)}' for k, v in value.items())} }}"
        )
    # A JSON string, number or boolean is one in TOML too.
    return json.dumps(value, ensure_ascii=False)
