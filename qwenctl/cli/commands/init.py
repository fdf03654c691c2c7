"""`qwenctl init`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, JsonOption


def init(
    here: Annotated[
        bool, typer.Option("--here", help="Write ./qwenctl.toml instead of the one of the user.")
    ] = False,
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", help="Name of the GPU.")] = "main",
    provider: Annotated[
        str,
        typer.Option(
            "--provider",
            metavar="NAME",
            help="Who runs the instance: local, aliyun, aws, or another that is installed.",
        ),
    ] = "local",
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write a commented config file to start from.

    \b
    Examples:
      qwenctl init
      qwenctl init --here --gpu main --provider aliyun
    """
    from qwenctl.cli.setup import init as body

    body.init(here, gpu, provider, force, config, json)
