"""`qwenctl serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption


def serve(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="HOST:PORT", help="Address to listen on.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the proxy that wakes, forwards and stops.

    It serves waiting pages, forwards to the GPU, and runs the controller that starts and stops it.

    \b
    Examples:
      qwenctl serve
      qwenctl serve --listen 127.0.0.1:9000
      qwenctl serve --config /etc/qwenctl/qwenctl.toml
    """
    from qwenctl.cli.setup import serve as body

    body.serve(listen, config)
