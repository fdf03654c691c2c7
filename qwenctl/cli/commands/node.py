"""`qwenctl node`: run the program `qwenctl-node` of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The agent on this GPU instance: install it as a service, look after it.",
    no_args_is_help=True,
)

# The other program parses all options, --help included.
_PASS = {"ignore_unknown_options": True, "help_option_names": []}

_PROGRAM = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from gpu_node.__main__ import main; sys.exit(main())"
)
"""For a program that is not installed beside Python. Not ``-m``: that would run a package of that name
in the current folder, perhaps as root."""

Arguments = Annotated[
    list[str] | None, typer.Argument(help="See `qwenctl-node COMMAND --help`.", metavar="[OPTIONS]")
]


_COMMANDS = {
    "install": """Make the agent a systemd service with a watchdog. Run it again after an upgrade.

    \b
    Examples:
      sudo qwenctl node install
      sudo qwenctl node install --config /etc/qwenctl/node.toml --runs docker
      qwenctl node install --print
    """,
    "uninstall": "Stop the service and remove it. State, settings and logs stay, unless with --purge.",
    "status": (
        "Is the agent running, when was a proxy heard, how are the services? "
        "With --json for programs."
    ),
    "logs": """The agent's log, or that of a service.

    \b
    Examples:
      qwenctl node logs --follow
      qwenctl node logs webui
    """,
    "doctor": "Check everything that this node needs, and say how to mend what is wrong.",
    "bake": "Make this instance ready for a snapshot or an image of it, or only --check that.",
}
"""Command → its help."""


def _hand_over(context: typer.Context, arguments: Arguments = None) -> None:
    """Replace this process by the agent's program."""
    sys.stdout.flush()
    installed = Path(sys.executable).with_name("qwenctl-node")
    program = [str(installed)] if installed.exists() else [sys.executable, "-c", _PROGRAM]
    os.execv(program[0], [*program, str(context.info_name), *(arguments or [])])  # noqa: S606


for _name, _help in _COMMANDS.items():
    app.command(_name, help=_help, context_settings=_PASS)(_hand_over)
