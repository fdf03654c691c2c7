"""`qwenctl init`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qwenctl.cli.context import JsonOption, print_json
from qwenctl.cli.settings import toml_list

__all__ = ["init", "sample_webui"]

_TEMPLATE = """\
# qwenctl: a GPU in the cloud that sleeps until somebody needs it.
# Check this file with `qwenctl config validate`; all keys: `qwenctl config show`.
# Durations are seconds or text such as "90s", "10m", "1h30m".

[proxy]
listen = "127.0.0.1:8080"
# Where people and nodes reach the proxy, if not under the address above:
# public_url = "https://gpu.example.com"

[access]
# "none" is for this machine only. For others: mode = "password", and
# password_hash from `qwenctl access hash-password`.
mode = "none"

[gpu.{name}]
provider = "{provider}"
# How long after its last use the GPU stays on:
idle_timeout = "10m"
# What to tell the first visitor, before there are boots to learn from:
boot_estimate = "30s"
# What counts as use: "gradio", "open-webui", "openai" or "generic".
preset = "generic"
# "visit": a visible waiting page wakes it; "click": only its button; "never".
wake_on = "visit"
# For `qwenctl status`, in your currency:
# price_per_hour = 1.20

# The local provider: an "instance" that is a group of processes on this machine.
[gpu.{name}.local]
boot_seconds = 3

# What the instance runs. Replace this sample, a single page, with your WebUI and its port.
[[gpu.{name}.service]]
name = "webui"
command = {command}
port = 7860

# For example the WebUI of Qwen3-VL (with preset = "gradio"):
# command = ["python3", "web_demo_mm.py", "--server-port", "7860"]

# Or vLLM's OpenAI-compatible API (with preset = "openai"):
# command = ["vllm", "serve", "Qwen/Qwen3-VL-8B-Instruct", "--port", "8000"]
# port = 8000
# readiness = {{ path = "/health" }}
# activity = {{ path = "/metrics", metrics = ["vllm:num_requests_running"] }}
"""


def sample_webui() -> Path | None:
    """The sample WebUI: of the checkout, or of the installed package."""
    package = Path(__file__).resolve().parent.parent
    for path in (
        package.parent / "examples" / "webui" / "app.py",
        package / "demo_webui" / "app.py",
    ):
        if path.is_file():
            return path
    return None


def init(
    here: Annotated[
        bool, typer.Option("--here", help="Write ./qwenctl.toml instead of the one of the user.")
    ] = False,
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help="Name of the GPU.")] = "main",
    provider: Annotated[
        str, typer.Option("--provider", metavar="NAME", help="Who runs the instance.")
    ] = "local",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a commented config file to start from.

    \b
    Examples:
      qwenctl init
      qwenctl init --here --gpu main --provider local
    """
    import os
    import re

    from qwenctl.errors import ConfigError

    if provider != "local":
        raise ConfigError(f"no template for the provider {provider!r}; there is one for: local")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", gpu):
        raise ConfigError(
            f"--gpu {gpu!r}: a name is made of lower-case letters, digits and hyphens, at most 32"
        )
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    path = Path("qwenctl.toml") if here else base / "qwenctl" / "qwenctl.toml"
    command = [sys.executable, "-m", "qwenctl.cli.sample", "7860"]
    text = _TEMPLATE.format(name=gpu, provider=provider, command=toml_list(command))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    if json:
        print_json({"file": str(path.resolve()), "gpu": gpu})
        return
    print(f"Wrote {path.resolve()}. It runs as it is, with a sample page for a WebUI; try:")
    print("  qwenctl serve              run the proxy; open the address that it prints")
    print("  qwenctl up                 wake the GPU from another terminal")
    print("  qwenctl why                who keeps it on or off")
    print(f"Then edit it: in [[gpu.{gpu}.service]] put your WebUI's `command` and `port`, in")
    print(f"[gpu.{gpu}] its `preset`. `qwenctl config validate` checks it.")
