"""`qwenctl import`: a command for each installed provider with an importer."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from qwenctl.cli.common.context import ConfigOption, JsonOption

if TYPE_CHECKING:
    from qwenctl.clouds.admin import Importer


InstanceArgument = Annotated[str, typer.Argument(help="The instance's id.", show_default=False)]
RegionOption = Annotated[
    str, typer.Option("--region", "-r", metavar="REGION", help="Where it is.", show_default=False)
]
NameOption = Annotated[
    str, typer.Option("--name", metavar="NAME", help="What to call the GPU in the config.")
]
WriteOption = Annotated[
    bool,
    typer.Option(
        "--write", help="Append the section to the config file, or fill in one left empty."
    ),
]


class _Providers(TyperGroup):
    """The providers' commands, made on demand: most starts need none."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(_importers())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        found = _importers().get(cmd_name)
        return _command(cmd_name, found) if found else None


app = typer.Typer(
    cls=_Providers, no_args_is_help=True, help="Write the config section of an existing instance."
)


def _importers() -> dict[str, Importer]:
    from qwenctl.cli.cloud import discover as body

    return body.importers()


def _command(provider: str, importer: Importer) -> Any:
    """Make the command of a provider, with its own options among the shared ones."""

    def command(
        instance_id: InstanceArgument,
        region: RegionOption,
        name: NameOption = "main",
        write: WriteOption = False,
        config: ConfigOption = None,
        json: JsonOption = False,
        **own: str,
    ) -> None:
        from qwenctl.cli.cloud import discover as body

        values = {"instance_id": instance_id, "region": region, **own}
        body.discover(provider, values, name, write, config, json)

    command.__doc__ = (
        f"{importer.help}\n\n\b\nExamples:\n"
        f"  qwenctl import {provider} {importer.instance_id} --region {importer.region}\n"
        f"  qwenctl import {provider} {importer.instance_id} --region {importer.region} "
        "--name small --write\n"
    )
    signature = inspect.signature(command, eval_str=True)
    *parameters, _ = signature.parameters.values()
    parameters[4:4] = [
        inspect.Parameter(
            option.key,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default="",
            annotation=Annotated[
                str,
                typer.Option(
                    f"--{option.key.replace('_', '-')}",
                    metavar=option.metavar,
                    help=option.help,
                    hidden=option.hidden,
                    show_default=False,
                ),
            ],
        )
        for option in importer.options
    ]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    maker = typer.Typer(add_completion=False, rich_markup_mode=None)
    maker.command(provider)(command)
    return typer.main.get_command(maker)
