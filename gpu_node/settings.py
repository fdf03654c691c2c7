"""The agent's settings: the proxies and the node secret.

What to run comes from the proxy (`qwenctl.protocol.messages.Spec`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import (
    long_enough,
    read_private,
    read_regular,
    read_secret,
    write_private,
)
from qwenctl.lib.settings_file import SettingsFile
from qwenctl.lib.settings_types import NAME, FilePath

ENV_PREFIX = "QWENCTL_NODE__"

LAST_GOOD = "settings.json"

OF_THIS_BOOT = ("agent.lock", "deadman.json", "notice.json", "status.json", "watchdog.json")
"""Files in the state directory that are void after a boot."""

CONTAINER_KEY = "container.key"

STATE_FILES = (*OF_THIS_BOOT, "spec.json", LAST_GOOD, CONTAINER_KEY)
"""All files of the agent there."""


class NodeSettings(BaseModel):
    """Every setting, as in the TOML file; ``QWENCTL_NODE__KEY`` overrides it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    proxy_urls: tuple[str, ...] = Field(min_length=1)
    """Where the proxies are, tried in turn: ``http://host:port``."""
    gpu: str = Field(pattern=NAME)
    """This GPU's name in the proxy's configuration."""
    node_secret: SecretStr = SecretStr("")
    """The secret that this deployment's nodes sign with; better in `node_secret_file`."""
    node_secret_file: FilePath = ""
    """A file with that secret."""
    boot_id: str = Field("", pattern=r"^([A-Za-z0-9-]{8,64})?$")
    """Names this boot of the instance; default: the kernel's, else a random one."""
    booted_at: float = Field(0.0, ge=0)
    """The monotonic clock (seconds) when the instance booted; 0: when that clock began."""
    state_dir: FilePath = "/var/lib/qwenctl-node"
    """What has to survive a restart of the agent."""
    log_dir: FilePath = "/var/log/qwenctl-node"
    """One log file a service, 5 MB and one older file each."""
    dead_man: float = Field(600.0, gt=0)
    """Seconds without contact to any proxy until the node stops itself, until the proxy has said
    otherwise."""
    power_off_command: tuple[str, ...] = ()
    """The program that stops this instance in its cloud; none: the agent just exits with 70."""
    docker_host: str = ""
    """Docker's address, such as ``unix:///run/docker.sock``; default: ``DOCKER_HOST``, or Docker's
    own."""
    registry_auth_file: FilePath = ""
    """A ``config.json`` as ``docker login`` writes it; default: that of the agent's user."""
    keep_containers: bool = True
    """Leave containers running when the agent is stopped, so that an upgrade of it cuts nobody's
    work; the next agent takes them up. A dead man's stop ends them, too."""
    cloud: Literal["", "aliyun", "aws"] = ""
    """Whose metadata service is watched for spot interruption notices; empty: none."""
    metadata_url: str = Field("", pattern=r"^(https?://.*[^/])?$")
    """Where that service is, without a path; default: the cloud's own address."""

    @field_validator("proxy_urls")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is no http:// or https:// address")
        return tuple(url.rstrip("/") for url in value)

    def read_secret(self) -> str:
        """Read the node secret.

        Raises:
            ConfigError: none is given, its file cannot be read or is empty, or it is too short.
        """
        if given := self.node_secret.get_secret_value():
            return long_enough(given, "node_secret")
        if not self.node_secret_file:
            raise ConfigError("set node_secret_file to a file with the deployment's node secret")
        path = Path(self.node_secret_file).expanduser()
        return long_enough(read_secret(path, "node_secret_file"), f"node_secret_file: {path}")

    def this_boot(self) -> str:
        """Return the boot id: as set, else the kernel's (random(4)), else a random one."""
        if self.boot_id:
            return self.boot_id
        try:
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return secrets.token_hex(16)


def load_settings(path: str | None, env: Mapping[str, str]) -> NodeSettings:
    """Read the TOML file, if any, overlay the environment, and validate.

    Raises:
        ConfigError: one sentence a problem, with the file and the key.
    """
    return _FILE.load(path, env)


_FILE = SettingsFile(
    NodeSettings,
    ENV_PREFIX,
    shows=lambda _: False,  # it may be a secret in the wrong place
    absent=(
        "; name the settings with --config; `qwenctl provision`, where the proxy is, prints how "
        "they are made"
    ),
    unreadable="; use sudo?",
    no_key=" is missing; set it there or in {variable}",
    json_starts="[",
)


def save_last_good(settings: NodeSettings) -> Path:
    """Copy the settings for a watchdog that cannot use later ones; return the path.

    The node secret and the settings of this boot alone are left out.

    Raises:
        OSError: it cannot be written.
    """
    text = settings.model_dump_json(exclude={"node_secret", "boot_id", "booted_at"})
    file = Path(settings.state_dir, LAST_GOOD)
    write_private(file, text)
    return file


def load_last_good(path: str | None, env: Mapping[str, str]) -> NodeSettings | None:
    """Load the copy of earlier settings; None: there is none, or it is invalid.

    Unknown keys, such as those of a newer version, are ignored.
    """
    file = Path(state_dir_of(path, env), LAST_GOOD)
    try:
        if file.stat().st_uid not in (os.geteuid(), 0):
            return None  # it names a command
        found = json.loads(read_private(file))
        known = {key: found[key] for key in NodeSettings.model_fields if key in found}
        return NodeSettings.model_validate(known)
    except (OSError, ValueError, TypeError):
        return None


def state_dir_of(path: str | None, env: Mapping[str, str]) -> str:
    """Return the state directory, even if the settings are not valid."""
    if given := env.get(f"{ENV_PREFIX}STATE_DIR"):
        return given
    found = None
    try:
        text = read_regular(Path(path).expanduser()).decode("utf-8", "replace") if path else ""
        found = re.search(r"""^\s*state_dir\s*=\s*(["'])(.+?)\1""", text, re.MULTILINE)
    except (OSError, RuntimeError, ValueError):
        pass
    return found[2] if found else str(NodeSettings.model_fields["state_dir"].default)
