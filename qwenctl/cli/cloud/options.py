"""Options that `provision` and `provision create` share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["PackageOption", "UserOption"]

UserOption = Annotated[
    str, typer.Option("--user", metavar="NAME", help="Who the agent runs as on the instance.")
]
PackageOption = Annotated[
    str,
    typer.Option(
        "--package",
        metavar="SPEC",
        help="What pip installs there. Default: this version of qwenctl.",
        show_default=False,
    ),
]
