"""`qwenctl permissions`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, GpuOption, JsonOption


def permissions(
    cloud: Annotated[
        str,
        typer.Argument(metavar="aliyun|aws|…", help="Which cloud's policy.", show_default=False),
    ],
    gpu: GpuOption = None,
    node: Annotated[
        bool,
        typer.Option("--node", help="For the node's instance role: to stop itself, nothing else."),
    ] = False,
    admin: Annotated[
        bool,
        typer.Option("--admin", help="For `qwenctl provision --apply`, `create` and `release`."),
    ] = False,
    json: JsonOption = False,  # noqa: ARG001
    config: ConfigOption = None,
) -> None:
    """Print the least-privilege policy for exactly the configured instances, as JSON.

    Without --node or --admin it is for the proxy: to look at, start and stop them. Asks no cloud.

    \b
    Examples:
      qwenctl permissions aliyun > qwenctl-proxy.json
      qwenctl permissions aws --node --gpu main
      qwenctl permissions aws --admin
    """
    if node and admin:
        raise typer.BadParameter("--node and --admin are for different roles; give one of them")
    from qwenctl.cli.cloud import permissions as body

    body.permissions(cloud, gpu, node, admin, config)
