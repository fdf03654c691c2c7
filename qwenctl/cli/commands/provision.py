"""`qwenctl provision`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from qwenctl.cli.common.context import ConfigOption, DryRunOption, GpuOption, JsonOption, use_config

app = typer.Typer(invoke_without_command=True)

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
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class Part(str, Enum):
    """What to print alone."""

    rules = "rules"
    role = "role"
    user_data = "user-data"
    script = "script"


@app.callback()
def prepare(
    context: typer.Context,
    gpu: GpuOption = None,
    fallback: Annotated[
        str,
        typer.Option(
            "--fallback",
            metavar="NAME",
            help="Prepare this fallback instance, not the GPU's own.",
            show_default=False,
        ),
    ] = "",
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NETWORK",
            help="Where the proxy's requests come from: 10.0.0.5/32, or a security group's id. "
            "Default: the addresses in proxy.node_urls.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        Part | None, typer.Option("--only", help="Print one part alone.", show_default=False)
    ] = None,
    user: UserOption = "qwenctl",
    package: PackageOption = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the part to a file that only you can read.",
            show_default=False,
        ),
    ] = None,
    with_secret: Annotated[
        bool, typer.Option("--with-secret", help="Put the node secret in as well; needs --output.")
    ] = False,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Do it: add the missing security group rules; on Alibaba Cloud, make and attach "
            "the instance's role; on EC2, let an OS shutdown only stop the instance.",
        ),
    ] = False,
    dry_run: DryRunOption = False,
    security_group: Annotated[
        str,
        typer.Option(
            "--security-group",
            metavar="ID",
            help="Which of the instance's groups gets the rules, if it has several.",
            show_default=False,
        ),
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Print what a GPU's instance needs: rules, role, and the agent as a systemd service.

    Changes nothing without --apply, which takes nothing away and may be run again. User data runs
    at the first boot of a new instance; --only script is the same for one that exists. `create`
    makes a new instance from a template in the configuration, `release` deletes it.

    \b
    Examples:
      qwenctl provision
      qwenctl provision --only user-data > user-data.yaml
      qwenctl provision --only script | ssh root@10.0.0.7 sh
      qwenctl provision --only user-data --with-secret -o user-data.yaml
      qwenctl provision --apply --dry-run
      qwenctl provision --apply --from 10.0.0.5/32
      qwenctl provision create --dry-run
    """
    if context.invoked_subcommand is not None:
        _only_config_before(context)
        if config is not None:
            use_config(config)
        return
    from qwenctl.cli.cloud import provision as body

    part = only.value if only else ""
    body.prepare(
        *(gpu, fallback, source or (), part, user, package, output, with_secret),
        *(apply, dry_run, security_group, config, json),
    )


def _only_config_before(context: typer.Context) -> None:
    """Refuse options before `create` or `release`: they would have no effect."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name != "config" and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"options of {context.invoked_subcommand} go after that word", context
            )


@app.command()
def create(
    gpu: GpuOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    user: UserOption = "qwenctl",
    package: PackageOption = "",
    with_secret: Annotated[
        bool, typer.Option("--with-secret", help="Put the node secret into the user data.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Create the instance of [gpu.NAME.aliyun.template] or [gpu.NAME.aws.template].

    Its user data install the agent, and its id is written to the config file. Run it again after a
    cut connection: it takes over the instance and makes no second one.

    It is billed from then on, and nobody stops it until a proxy runs with that config file: start
    `qwenctl serve` anew, or stop the instance by `qwenctl down`. Once its agent is
    installed, it stops itself when no proxy is heard, or nobody copies the node secret to it.

    \b
    Examples:
      qwenctl provision create --dry-run
      qwenctl provision create --gpu main --yes
    """
    from qwenctl.cli.cloud import create as body

    body.create(gpu, dry_run, yes, user, package, with_secret, config, json)


@app.command()
def release(
    gpu: GpuOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Although it runs or somebody needs it; Redis is not asked."),
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Delete the instance that `create` made, its system disk included, for good.

    Only one that carries our tags; only when it is stopped and nobody holds a lease, unless
    --force. Its id is removed from the config file.

    \b
    Examples:
      qwenctl provision release --dry-run
      qwenctl provision release --gpu main
    """
    from qwenctl.cli.cloud import create as body

    body.release(gpu, dry_run, yes, force, config, json)
