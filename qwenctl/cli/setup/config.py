"""`qwenctl config`: look at the configuration, without its secrets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, JsonOption, load, print_json
from qwenctl.config.masking import masked
from qwenctl.config.toml import to_toml

if TYPE_CHECKING:
    from qwenctl.config.deployment import Config


__all__ = [
    "app",
    "check_password",
]

app = typer.Typer(no_args_is_help=True, help="Show and check the configuration.")


@app.command()
def show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print the configuration in force, defaults included, secrets masked.

    \b
    Examples:
      qwenctl config show
      QWENCTL_PROXY__LISTEN=127.0.0.1:9000 qwenctl config show --json
    """
    loaded = load(config)
    data = masked(loaded.model_dump(mode="json"))
    if json:
        print_json(data)
        return
    print(f"# From {loaded.source or 'defaults and QWENCTL_* (no file)'}")
    print(to_toml(data))


@app.command()
def validate(
    file: Annotated[
        str | None, typer.Argument(help="The file to check.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Check the configuration; one line for each mistake, exit code 2 if there is one.

    It refuses what `qwenctl serve` would refuse, and starts nothing.

    \b
    Examples:
      qwenctl config validate
      qwenctl config validate ./qwenctl.toml
    """
    import sys

    from qwenctl.errors import ConfigError

    try:
        loaded = load(file or config)
        _check(loaded)
    except ConfigError as error:
        if not json:
            raise
        print_json({"valid": False, "errors": str(error).splitlines(), "warnings": []})
        raise typer.Exit(error.exit_code) from None
    names = list(loaded.gpu)
    warnings = [
        f"gpu.{name} has no service: its instance starts nothing (see [[gpu.{name}.service]])"
        for name, gpu in loaded.gpu.items()
        if not gpu.service and gpu.agent
    ]
    if loaded.unvisited:
        first = next(name for name, gpu in loaded.gpu.items() if not gpu.hosts)
        others = " and ".join(f"gpu.{name}" for name in loaded.unvisited)
        warnings.append(
            f"visitors reach gpu.{first} only, not {others}: none of them has hosts or a tier; give "
            "each a tier, or hosts (docs/tiers.md)"
        )
    if json:
        source = loaded.source or None
        print_json(
            {"valid": True, "errors": [], "warnings": warnings, "file": source, "gpus": names}
        )
        return
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    gpus = f"{len(names)} GPU{'s' if len(names) != 1 else ''}"
    print(f"{loaded.source or 'no file'}: ok, {gpus}{': ' if names else ''}{', '.join(names)}")


def _check(config: Config) -> None:
    """What is wrong with each setting together with the others and this installation.

    Raises:
        ConfigError: one line a mistake.
    """
    from qwenctl.config.providers import make_provider
    from qwenctl.config.read_schedules import schedules
    from qwenctl.config.secrets import read_secret
    from qwenctl.errors import ConfigError

    if not config.gpu and not config.source:
        raise ConfigError(_NO_FILE)
    checks: list[Callable[[], object]] = [config.check_listen, partial(check_password, config)]
    if not config.gpu:
        checks.append(lambda: config.gpu_name(None))
    if config.redis_password_file:
        password = Path(config.redis_password_file).expanduser()
        checks.append(lambda: read_secret(password, "redis_password_file"))
    if config.node_secret_file:
        checks.append(config.read_node_secret)
    for name, gpu in config.gpu.items():
        if not gpu.settings.on_this_machine:  # its provider would write the node secret
            checks.append(partial(make_provider, name, gpu, config))
        if gpu.prewarm or gpu.off_hours:
            checks.append(partial(schedules, config, name))  # reads their calendar files
    mistakes = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def check_password(config: Config) -> None:
    """Whether somebody, and not everybody, could sign in by ``access.password_hash``, if it is set.

    Raises:
        ConfigError: it is no whole argon2id hash, as that of an example is none; or that of the
            empty password.
    """
    from qwenctl.errors import ConfigError

    if not config.access.password_hash:
        return
    from argon2 import PasswordHasher
    from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

    try:
        PasswordHasher().verify(config.access.password_hash, "")
        mistake = "the hash of the empty password, so everybody could sign in"
    except VerifyMismatchError:
        return  # as it should be: the hash can be read, and is not that of no password
    except (Argon2Error, InvalidHashError):
        mistake = "not a whole argon2id hash, so nobody could sign in"
    raise ConfigError(f"access.password_hash: {mistake}; `qwenctl access hash-password` makes one")


_NO_FILE = (
    "no config file: neither ./qwenctl.toml nor one in the XDG config directory; "
    "`qwenctl init` writes one"
)


@app.command()
def path(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Print which config file is used; exit code 2 if there is none.

    \b
    Example:
      $EDITOR "$(qwenctl config path)"
    """
    from qwenctl.cli.common import context
    from qwenctl.config.loading import config_path
    from qwenctl.errors import ConfigError

    found = config_path(config or context.config_file())
    if found is None:
        raise ConfigError(_NO_FILE)
    if json:
        print_json({"file": str(found.resolve())})
    else:
        print(found.resolve())


@app.command()
def schema() -> None:
    """Print the JSON Schema of the config file, for editors.

    \b
    Example:
      qwenctl config schema > qwenctl.schema.json
    """
    from qwenctl.config.docs import schema as described

    print_json(described())
