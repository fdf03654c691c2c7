"""Reads an instance that exists and writes the configuration for it."""

from __future__ import annotations

import json

from qwenctl.clouds.admin import Found
from qwenctl.lib.text import escape_control

__all__ = [
    "section",
]


def section(name: str, found: Found) -> str:
    """The ``[gpu.NAME]`` section, TOML."""
    lines = [f"# {found.type}, {found.market}"]
    if found.addresses:
        lines[0] += "; " + ", ".join(f"{kind} {ip}" for kind, ip in found.addresses.items())
    lines += [f"# {warning}" for warning in found.warnings]
    lines += [f"[gpu.{name}]", f"provider = {_toml(found.cloud)}"]
    if found.price is not None:
        lines.append(f"price_per_hour = {found.price:g}  # {found.currency or 'your currency'}")
    else:
        lines.append("# price_per_hour = 1.20  # for `qwenctl status`, in your currency")
    lines += [
        "# What it runs, in containers; or [[gpu.NAME.service]] tables of your own:",
        '# workload = "qwen3-vl-webui"',
        '# model = "Qwen/Qwen3-VL-8B-Instruct"',
        "",
        f"[gpu.{name}.{found.cloud}]",
    ]
    lines += [f"{key} = {_toml(value)}" for key, value in found.settings.items()]
    # A cloud's text in a comment must not end the comment.
    return "\n".join(escape_control(line, " ") for line in lines) + "\n"


def _toml(value: object) -> str:
    """Text, numbers and booleans of JSON are TOML."""
    return json.dumps(value, ensure_ascii=False)
