"""`qwenctl import`: the configuration of an existing instance."""

from __future__ import annotations

import json as json_module
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qwenctl.cli.cloud.errors import raising_user_errors
from qwenctl.cli.common.context import config_file, print_json
from qwenctl.cli.common.terminal import paint
from qwenctl.cli.setup.init import config_text
from qwenctl.clouds.admin import Found, Importer, importer_of
from qwenctl.clouds.registry import names, settings_type
from qwenctl.config.edit import edit, with_keys
from qwenctl.config.loading import config_path, load_config
from qwenctl.errors import ConfigError
from qwenctl.lib.settings_types import NAME
from qwenctl.lib.text import escape_control


def importers() -> dict[str, Importer]:
    """Return the importers of the installed providers, by provider."""
    return {name: found for name in names() if (found := importer_of(name))}


def discover(
    provider: str, values: Mapping[str, str], name: str, write: bool, config: str | None, json: bool
) -> None:
    """Do `qwenctl import`; ``values``: the provider's settings as typed."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"--name {name!r}: a name is made of lower-case letters, digits and hyphens, at most 32"
        )
    importer = importers()[provider]
    settings = _settings(provider, importer, values)
    with raising_user_errors():
        found = importer.read(settings)
    text = _section(name, found)
    for warning in found.warnings:
        line = f"warning: {escape_control(warning, ' ')}"
        print(paint(line, "red", bold=True, stream=sys.stderr), file=sys.stderr)
    path, filled = _write(config, name, found, text) if write else (None, False)
    if json:
        print_json({"name": name, **asdict(found), "section": text, "file": path and str(path)})
    elif path is None:
        print(text, end="")
    else:
        done = f"Filled in [gpu.{name}.{found.cloud}] of" if filled else f"Added [gpu.{name}] to"
        print(f"{done} {path}.")
        print("Next: `qwenctl provision` for the agent, then `qwenctl doctor`.")


def _settings(provider: str, importer: Importer, values: Mapping[str, str]) -> Any:
    """Return the provider's settings.

    Raises:
        ConfigError: a value has a wrong form.
    """
    if missing := [key for key in ("region", "instance_id") if not values[key]]:
        raise ConfigError(f"{missing[0].replace('_', ' ')} must not be empty")
    try:
        given = {key: value for key, value in values.items() if value}
        return settings_type(provider).model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        if key in ("region", "instance_id"):
            what, like = "region", importer.region
            if key == "instance_id":
                what, like = "id", importer.instance_id
            text = f"{values[key]!r} is no {what} of {importer.cloud}; one is like {like}"
        else:
            forms = {option.key: option.form for option in importer.options}
            said = forms.get(key) or str(problem["msg"]).removeprefix("Value error, ")
            text = f"--{key.replace('_', '-')} {values[key]!r}: {said}"
        raise ConfigError(text) from None


def _section(name: str, found: Found) -> str:
    """Return the ``[gpu.NAME]`` section, TOML."""
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
    # The cloud's text must not end a comment.
    return "\n".join(escape_control(line, " ") for line in lines) + "\n"


def _toml(value: object) -> str:
    """Return TOML: JSON's texts, numbers and booleans are TOML, too."""
    return json_module.dumps(value, ensure_ascii=False)


def _write(given: str | None, name: str, found: Found, text: str) -> tuple[Path, bool]:
    """Append the section to the config file, or fill in a table without instance.

    `qwenctl init` writes such tables; its untouched sample is replaced. Return the file and whether a table was filled in.

    Raises:
        ConfigError: the file has such a GPU already, or cannot be read or written.
    """

    path = config_path(given or config_file()) or Path("qwenctl.toml")
    filled = False

    def change(before: str) -> str:
        nonlocal filled
        sample = before == config_text(name, "local") and config_text(name, found.cloud)
        gpu = load_config(str(path), env={}).gpu.get(name) if before else None
        if sample:
            filled, before = True, sample
        elif gpu is not None:
            table = gpu.settings
            if (
                gpu.provider != found.cloud
                or table.instance
                or table.region not in ("", found.settings["region"])
            ):
                raise ConfigError(
                    f"{path} has [gpu.{name}] already; choose another --name, or edit the file"
                )
            filled = True
        if filled:
            after = with_keys(before, ("gpu", name, found.cloud), found.settings)
            if found.price is None or (gpu and gpu.price_per_hour):
                return after
            return with_keys(after, ("gpu", name), {"price_per_hour": found.price})
        line_end = "" if before.endswith("\n") or not before else "\n"
        return before + line_end + ("\n" if before else "") + text

    edit(path, change, env={})
    return path, filled
