"""`qwenctl demo`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from qwenctl.errors import UserError


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Run one cycle unattended, print the timeline, end.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the proxy; 0: a free one.")
    ] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the demo's state and logs afterwards.")
    ] = False,
) -> None:
    """Try everything on this machine: no account, no Docker, no root.

    The "instance" is a group of processes here, its WebUI a small chat app that
    looks at pictures. Ctrl-C stops everything.

    \b
    Examples:
      qwenctl demo
      qwenctl demo --port 8080
      qwenctl demo --once
    """
    for module in ("gradio", "PIL", "redis", "uvicorn", "aiohttp", "flask"):
        if find_spec(module) is None:
            from qwenctl.lib.extras import missing

            raise UserError(missing(module))
    from qwenctl.cli.demo import command as body

    body.demo(once, port, keep)
