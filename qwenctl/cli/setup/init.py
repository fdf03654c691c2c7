"""`qwenctl init`: write a config file to start from."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from qwenctl.cli.common.context import config_file, print_json
from qwenctl.clouds.admin import importer_of
from qwenctl.clouds.registry import names, settings_type
from qwenctl.config.toml import to_toml
from qwenctl.errors import ConfigError
from qwenctl.lib.settings_types import NAME

_HEAD = """\
# qwenctl: a GPU in the cloud that sleeps until somebody needs it.
# Check this file with `qwenctl config validate`; all keys: `qwenctl config show`.
# Durations are seconds or text such as "90s", "10m", "1h30m".

[proxy]
listen = "127.0.0.1:8080"
# Where people and nodes reach the proxy, if not under the address above:
# public_url = "https://gpu.example.com"
{node_urls}
[access]
# "none" is for this machine only. For others: mode = "password", and
# password_hash from `qwenctl access hash-password`.
mode = "none"

[gpu.{name}]
provider = "{provider}"
# How long after its last use the GPU stays on:
idle_timeout = "10m"
# What to tell the first visitor, before there are boots to learn from:
boot_estimate = "{boot_estimate}"
{runs}# "visit": a visible waiting page wakes it; "click": only its button; "never".
wake_on = "visit"
# For `qwenctl status`, in your currency:
# price_per_hour = 1.20

"""

_SAMPLE_SERVICE = """
# What the instance runs. Replace this sample, a single page, with your WebUI and its port. Then
# restart `qwenctl serve`, and if the GPU is on, `qwenctl down`: the next wake runs what is new.
[[gpu.{name}.service]]
name = "webui"
{command}
port = 7860

# For example the WebUI of Qwen3-VL (with preset = "gradio"):
# command = ["python3", "web_demo_mm.py", "--server-port", "7860"]
# cwd = "/path/of/your/app"   # without it, in a work directory of the instance's own

# Or vLLM's OpenAI-compatible API (with preset = "openai"):
# command = ["vllm", "serve", "Qwen/Qwen3-VL-8B-Instruct", "--port", "8000"]
# port = 8000
# readiness = {{ path = "/health" }}
# activity = {{ path = "/metrics", metrics = ["vllm:num_requests_running"] }}
"""

_NODE_URLS = """\
# Where the GPU instance reaches this machine, best its private address in the same VPC:
# node_urls = ["http://10.0.0.5:8080"]
"""

_CLOUD_SERVICE = """
# Anything else is a [[gpu.{name}.service]] table of your own: a container with an image, or a
# command; see docs/node.md.
"""

_RUNS_SAMPLE = """\
# What counts as use: "gradio", "open-webui", "openai" or "generic".
preset = "generic"
"""

_RUNS_WORKLOAD = """\
# What the instance runs: "qwen3-vl-webui", "vllm-openai" or "open-webui+vllm". They need an image
# with Docker and nvidia-container-toolkit.
workload = "qwen3-vl-webui"
# A name on Hugging Face, or a directory on the instance. It must fit into the GPU's memory.
model = "Qwen/Qwen3-VL-8B-Instruct"
"""


def sample_webui() -> Path | None:
    """Return the sample WebUI of the checkout or of the installed package."""
    package = Path(__file__).resolve().parents[2]
    for path in (
        package.parent / "examples" / "webui" / "app.py",
        package / "demo_webui" / "app.py",
    ):
        if path.is_file():
            return path
    return None


def _sample(provider: str) -> str:
    """Return the sample table of a provider; empty if it has none."""
    return getattr(settings_type(provider), "sample", "")


def config_text(gpu: str, provider: str) -> str:
    """Return the config file that `init` writes; empty: there is no template for the provider."""
    if not _sample(provider):
        return ""
    command = [sys.executable, "-m", "qwenctl.cli.sample", "7860"]
    local = settings_type(provider).on_this_machine
    parts = _HEAD + _sample(provider) + (_SAMPLE_SERVICE if local else _CLOUD_SERVICE)
    return parts.format(
        name=gpu,
        provider=provider,
        command=to_toml({"command": command}),
        boot_estimate="30s" if local else "3m",
        runs=_RUNS_SAMPLE if local else _RUNS_WORKLOAD,
        node_urls="" if local else _NODE_URLS,
    )


def init(here: bool, gpu: str, provider: str, force: bool, config: str | None, json: bool) -> None:
    """Do `qwenctl init`."""
    if not (text := config_text(gpu, provider)):
        known = ", ".join(name for name in names() if _sample(name))
        raise ConfigError(f"no template for the provider {provider!r}; there is one for: {known}")
    if not re.fullmatch(NAME, gpu):
        raise ConfigError(
            f"--gpu {gpu!r}: a name is made of lower-case letters, digits and hyphens, at most 32"
        )
    base = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    path = base / "qwenctl" / "qwenctl.toml"
    if here:
        path = Path("qwenctl.toml")
    elif given := config or config_file() or os.environ.get("QWENCTL_CONFIG"):
        path = Path(given).expanduser()  # the file that was named, and no other
    local = settings_type(provider).on_this_machine
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
    if not local:
        way = f", or have printed by `qwenctl import {provider}`" if importer_of(provider) else ""
        print(f"Wrote {path.resolve()}. Fill in{way}:")
        print(f"  [gpu.{gpu}.{provider}]      `region` and `instance_id`")
        print("  [proxy]                `node_urls`: where the instance reaches this machine")
        print(f"  [gpu.{gpu}]             `workload` and `model`: what the instance runs")
        print("Then: `qwenctl config validate`, `qwenctl provision`, `qwenctl doctor`.")
        return
    print(f"Wrote {path.resolve()}. It runs as it is, with a sample page for a WebUI; try:")
    print("  qwenctl serve              run the proxy; open the address that it prints")
    print("  qwenctl up                 wake the GPU from another terminal")
    print("  qwenctl why                who keeps it on or off")
    print(f"Then edit it: in [[gpu.{gpu}.service]] put your WebUI's `command` and `port`, in")
    print(f"[gpu.{gpu}] its `preset`; a relative script needs `cwd`, the directory of your app.")
    print("`qwenctl config validate` checks it. Then restart `qwenctl serve`, and if the GPU is")
    print("on, `qwenctl down`.")
