"""`qwenctl config`: show and check the configuration, without its secrets."""

from __future__ import annotations

import threading
from functools import partial

import typer

from qwenctl.admin.validation import node_url_warnings, settings_checks
from qwenctl.cli.common import context
from qwenctl.cli.common.context import load, print_json
from qwenctl.config.deployment import Config
from qwenctl.config.docs import schema as described
from qwenctl.config.loading import config_path
from qwenctl.config.providers import make_provider
from qwenctl.config.read_schedules import schedules
from qwenctl.config.toml import to_toml
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.redaction import masked

STORE_SECONDS = 2.0
"""How long `validate` waits for the store, without which the settings may be valid all the same."""


def show(config: str | None, json: bool) -> None:
    """Do `qwenctl config show`."""
    loaded = load(config)
    data = masked(loaded.model_dump(mode="json"))
    if json:
        print_json(data)
        return
    print(f"# From {loaded.source or 'defaults and QWENCTL_* (no file)'}")
    print(to_toml(data))


def validate(file: str | None, config: str | None, json: bool) -> None:
    """Do `qwenctl config validate`."""
    import sys

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
    warnings += loaded.exposures()
    warnings += node_url_warnings(loaded)
    warnings += _left_on(loaded)
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


def _left_on(config: Config) -> list[str]:
    """Return what is on by settings of before, if the store answers soon."""
    from qwenctl.control import left_on
    from qwenctl.store import embedded
    from qwenctl.store.store import open_store

    found: list[str] = []

    def look() -> None:
        try:
            store = open_store(config)
            told = [
                f"{finding.found}: {finding.fix}" for finding in left_on.findings(config, store)
            ]
        except (ConfigError, StoreUnavailable):
            return
        found.extend(told)

    if config.redis_url or embedded.runs(config.state_path):
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(STORE_SECONDS)
    return found


def _check(config: Config) -> None:
    """Check the settings against each other and this installation.

    Raises:
        ConfigError: one line a mistake.
    """

    if not config.gpu and not config.source:
        raise ConfigError(_NO_FILE)
    checks = [check for _, check in settings_checks(config)]
    if not config.gpu:
        from qwenctl.control.left_on import check_any

        checks.append(partial(check_any, config))
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


_NO_FILE = (
    "no config file: neither ./qwenctl.toml nor one in the XDG config directory; "
    "`qwenctl init` writes one"
)


def path(config: str | None, json: bool) -> None:
    """Do `qwenctl config path`."""

    found = config_path(config or context.config_file())
    if found is None:
        raise ConfigError(_NO_FILE)
    if json:
        print_json({"file": str(found.resolve())})
    else:
        print(found.resolve())


def schema() -> None:
    """Do `qwenctl config schema`."""

    print_json(described())
