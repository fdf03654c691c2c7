"""Every setting of qwenctl, typed, in one file: ``qwenctl.toml``, overlaid by ``QWENCTL_*``.

An environment variable names the same key in capitals, tables joined by two underscores:
``QWENCTL_PROXY__LISTEN=127.0.0.1:9000``, ``QWENCTL_GPU__MAIN__IDLE_TIMEOUT=20m``.

Looked for, in this order: ``--config``, ``$QWENCTL_CONFIG``, ``./qwenctl.toml``,
``$XDG_CONFIG_HOME/qwenctl/qwenctl.toml``. `qwenctl serve` reads it only at its start: restart it
after an edit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qwenctl.clouds import registry
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import fields_of
from qwenctl.errors import ConfigError
from qwenctl.lib.redaction import is_secret
from qwenctl.lib.settings_file import SettingsFile, check_path

ENV_PREFIX = "QWENCTL_"


def config_path(given: str | None = None) -> Path | None:
    """Find the config file in force; None: there is none.

    Raises:
        ConfigError: a file was named and does not exist.
    """
    named = given or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named:
        check_path(named)
        path = Path(named).expanduser()
        try:
            found, other = path.is_file(), path.exists()
        except OSError as error:  # up to Python 3.13 it raises some
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        if other and not found:
            raise ConfigError(f"{path} is no regular file; a config file must be one")
        if not found:
            raise ConfigError(f"no config file at {path}; `qwenctl init` writes one")
        return path
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    for path in (Path("qwenctl.toml"), Path(base).expanduser() / "qwenctl" / "qwenctl.toml"):
        if path.is_file():
            return path
    return None


def load_config(given: str | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read, overlay and check the configuration.

    Raises:
        ConfigError: one sentence a problem: the file, the key, the value, what is allowed.
    """
    path = config_path(given)
    env = os.environ if env is None else env
    config = _with_whole_paths(_FILE.load(path, env), path, env)
    config._source = str(path.resolve()) if path else ""
    return config


def _with_whole_paths(config: Config, file: Path | None, env: Mapping[str, str]) -> Config:
    """Return the configuration with absolute paths.

    A relative path starts at the directory of the file; one in a variable, at the working directory.
    """
    whole = {}
    for key in ("state_dir", "redis_password_file", "node_secret_file"):
        if text := getattr(config, key):
            inside = file is not None and f"{ENV_PREFIX}{key.upper()}" not in env
            base = file.resolve().parent if file and inside else Path.cwd()
            whole[key] = str(base / Path(text).expanduser())
    return config.model_copy(update=whole) if whole else config


def _keys_of(name: str) -> list[str]:
    keys = name.split("__")
    if name in ("config", "debug", "embedded_linger", "lang", "test_snapshot_delay"):
        return []  # no settings
    if keys[0] == "node" and len(keys) > 1:
        return []  # the agent's settings (gpu_node)
    if keys[0] == "gpu" and len(keys) > 1:
        keys[1] = keys[1].replace("_", "-")
    return keys


def _may_show(place: list[str]) -> bool:
    """Hide secrets and what may be a secret in the wrong place."""
    key = place[-1].removesuffix("_file")
    return not ("env" in place or key == "redis_url" or is_secret(key))


_FILE = SettingsFile(
    Config,
    ENV_PREFIX,
    shows=_may_show,
    keys_of=_keys_of,
    fields_of=lambda model: fields_of(model, registry.names()),
)
