"""Make a secret at first use."""

from __future__ import annotations

import os
from pathlib import Path

from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import read_secret

__all__ = [
    "state_dir",
]


def own_secret(path: Path) -> str:
    """A random secret in a file that only the owner can read, made at the first call."""
    import secrets

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(fresh, path)  # two processes at once: the first one wins, both read it
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        if not path.exists():
            raise ConfigError(
                f"cannot write {path}: {error.strerror}; set state_dir or QWENCTL_STATE_DIR to a "
                "directory that you can write"
            ) from None
    return read_secret(path, "secret")


def state_dir() -> Path:
    """``$XDG_STATE_HOME/qwenctl``, by default ``~/.local/state/qwenctl``."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "qwenctl"
