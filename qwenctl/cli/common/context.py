"""Shared options, and the config, store and GPU that they name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenctl.lib.text import json_ascii_control

if TYPE_CHECKING:
    from qwenctl.config.deployment import Config
    from qwenctl.config.gpu import GpuConfig
    from qwenctl.store.store import Store


def gpu_names(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a GPU."""
    return _complete(context, incomplete, lambda config: list(config.gpu))


def schedule_names(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a schedule, of the GPU that is given or of any."""

    def names(config: Config) -> list[str]:
        given = context.params.get("gpu")
        gpus = [table for name, table in config.gpu.items() if given in (None, name)]
        found = (plan.name for gpu in gpus for plan in (*gpu.prewarm, *gpu.off_hours))
        return list(dict.fromkeys(found))

    return _complete(context, incomplete, names)


def service_names(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a service, of the GPU that is given or of any."""

    def names(config: Config) -> list[str]:
        given = context.params.get("gpu")
        gpus = [table for name, table in config.gpu.items() if given in (None, name)]
        return list(dict.fromkeys(service.name for gpu in gpus for service in gpu.service))

    return _complete(context, incomplete, names)


def _complete(
    context: typer.Context, incomplete: str, names: Callable[[Config], list[str]]
) -> list[str]:
    """Return the names of the configuration that begin so; none if it cannot be read."""
    root = context.find_root()
    given = context.params.get("config") or root.params.get("config")
    try:
        return [name for name in names(load(given)) if name.startswith(incomplete)]
    except Exception:  # the shell shows whatever is printed
        return []


ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="FILE", help="Config file to use.", show_default=False),
]
GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        "-g",
        metavar="NAME",
        help="Which GPU, if there are several.",
        show_default=False,
        autocompletion=gpu_names,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
BecauseOption = Annotated[
    str,
    typer.Option("--because", metavar="TEXT", help="Reason, shown in `why`.", show_default=False),
]

NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Return at once.")]

_config_file: str | None = None


def use_config(path: str | None) -> None:
    """Remember the file given by ``--config`` before the command."""
    global _config_file
    _config_file = path


def config_file() -> str | None:
    """Return the file given by ``--config`` before the command."""
    return _config_file


_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"


def load(given: str | None = None) -> Config:
    """Load the configuration; ``given``, a ``--config`` after the command, has precedence."""
    import os

    from qwenctl.config.loading import load_config

    # Looking for plugins takes a twentieth of `qwenctl status`. Child processes, such as a service,
    # must not inherit the variable.
    ours = _PLUGINS not in os.environ
    os.environ.setdefault(_PLUGINS, "__all__")
    try:
        return load_config(given or _config_file)
    finally:
        if ours:
            del os.environ[_PLUGINS]


class Target:
    """A GPU of the configuration with its store."""

    def __init__(self, config: Config, name: str, store: Store) -> None:
        self.config, self.name, self.store = config, name, store

    @classmethod
    def find(
        cls, gpu: str | None, config_file: str | None = None, *, removed: bool = False
    ) -> Target:
        """Return the GPU that the options name; ``removed``: the settings may no longer have it."""
        config = load(config_file)
        if removed and gpu and gpu not in config.gpu:
            from qwenctl.control.left_on import with_removed

            store = open_store(config)
            config = with_removed(config, store)
            return cls(config, config.gpu_name(gpu), store)
        if not config.gpu:
            from qwenctl.control.left_on import check_any

            check_any(config)
        name = config.gpu_name(gpu)
        return cls(config, name, open_store(config))

    @classmethod
    def all(cls, config_file: str | None = None) -> list[Target]:
        """Return every GPU, also those that the settings no longer have and that may be on."""
        from qwenctl.control.left_on import check_any, with_removed

        config = load(config_file)
        store = open_store(config)
        known = with_removed(config, store)
        if not known.gpu:
            check_any(config)
        return [cls(known, name, store) for name in known.gpu]

    @property
    def gpu(self) -> GpuConfig:
        return self.config.gpu[self.name]

    def command(self, verb: str) -> str:
        """Return a command line for this GPU in backticks, with ``--gpu`` if there are several."""
        return f"`qwenctl {verb}{f' --gpu {self.name}' if len(self.config.gpu) > 1 else ''}`"


def open_store(config: Config) -> Store:
    from qwenctl.store.store import open_store

    return open_store(config)


def duration_option(*names: str, help: str) -> Any:  # noqa: A002
    """Return an option that takes a duration such as 90, 90s, 10m or 1h30m."""

    def parse(text: str) -> float:
        from qwenctl.lib.settings_types import parse_duration

        try:
            return parse_duration(text)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r}: {error}") from None

    return typer.Option(*names, metavar="DURATION", parser=parse, help=help, show_default=False)


TimeoutOption = Annotated[
    float | None, duration_option("--timeout", help="Give up waiting after this long (exit 5).")
]


def some_time(seconds: float | None) -> None:
    """Refuse a ``--for`` of less than a second."""
    if seconds is not None and seconds < 1:
        raise typer.BadParameter("it must be at least 1 s", param_hint="--for")


def heed_interrupt() -> None:
    """Let SIGINT end this process even if a shell script started it with ``&``."""
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)


def user() -> str:
    """Return the user's name for the history: SUDO_USER, or the login name."""
    import getpass
    import os

    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return f"uid{os.getuid()}"


def print_json(value: object, *, compact: bool = False) -> None:
    """Print JSON; with ``compact`` on a single line."""
    text = json.dumps(value, ensure_ascii=False, indent=None if compact else 2)
    print(json_ascii_control(text), flush=compact)
