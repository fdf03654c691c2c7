"""`qwenctl import`: the configuration of an instance that exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenctl.cli.common import context
from qwenctl.cli.common.context import ConfigOption, JsonOption, print_json
from qwenctl.cli.common.terminal import paint
from qwenctl.lib.text import escape_control

if TYPE_CHECKING:
    from qwenctl.clouds.admin import Found

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Write the config section of an existing instance.")

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


@app.command()
def aliyun(
    instance_id: InstanceArgument,
    region: RegionOption,
    name: NameOption = "main",
    write: WriteOption = False,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint",
            metavar="HOST",
            help="The ECS API, such as ecs-vpc.cn-hangzhou.aliyuncs.com. Default: the region's.",
            show_default=False,
        ),
    ] = "",
    protocol: Annotated[str, typer.Option("--protocol", hidden=True)] = "https",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Read an instance of Alibaba Cloud: type, price, addresses, billing.

    \b
    Examples:
      qwenctl import aliyun i-bp1abcdefgh --region cn-hangzhou
      qwenctl import aliyun i-bp1abcdefgh --region cn-hangzhou --name small --write
    """
    from qwenctl.clouds.aliyun.api import Ecs
    from qwenctl.clouds.aliyun.discover import read_aliyun
    from qwenctl.clouds.aliyun.settings import AliyunConfig
    from qwenctl.errors import ConfigError
    from qwenctl.lib.settings_types import is_loopback

    _check_name(name)
    settings = _settings(
        AliyunConfig,
        region=region,
        instance_id=instance_id,
        endpoint=endpoint,
        protocol=protocol,
    )
    if protocol == "http" and not is_loopback(endpoint.partition(":")[0]):
        raise ConfigError("--protocol http is only for an endpoint on this machine")
    _show(name, _asked(lambda: read_aliyun(Ecs(settings), settings)), write, config, json)


@app.command()
def aws(
    instance_id: InstanceArgument,
    region: RegionOption,
    name: NameOption = "main",
    write: WriteOption = False,
    profile: Annotated[
        str,
        typer.Option(
            "--profile", metavar="NAME", help="A profile of the AWS config.", show_default=False
        ),
    ] = "",
    endpoint_url: Annotated[
        str,
        typer.Option(
            "--endpoint-url",
            metavar="URL",
            help="The EC2 API. Default: the region's.",
            show_default=False,
        ),
    ] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Read an instance of AWS EC2: type, addresses, market. EC2's API has no prices.

    \b
    Examples:
      qwenctl import aws i-0123456789abcdef0 --region us-east-1
      qwenctl import aws i-0123456789abcdef0 --region us-east-1 --name small --write
    """
    from qwenctl.clouds.aws.api import account_of
    from qwenctl.clouds.aws.discover import read_aws
    from qwenctl.clouds.aws.settings import AwsConfig

    _check_name(name)
    settings = _settings(
        AwsConfig,
        region=region,
        instance_id=instance_id,
        profile=profile,
        endpoint_url=endpoint_url,
    )
    _show(name, _asked(lambda: read_aws(account_of(settings), settings)), write, config, json)


def _check_name(name: str) -> None:
    from qwenctl.errors import ConfigError

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
        raise ConfigError(
            f"--name {name!r}: a name is made of lower-case letters, digits and hyphens, at most 32"
        )


def _settings(model: Any, **values: str) -> Any:
    """The cloud's table.

    Raises:
        ConfigError: a value has not the right form.
    """
    from pydantic import ValidationError

    from qwenctl.errors import ConfigError

    if missing := [key for key in ("region", "instance_id") if not values[key]]:
        raise ConfigError(f"{missing[0].replace('_', ' ')} must not be empty")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        cloud, *examples = _EXAMPLES[model.__name__]
        if key in ("region", "instance_id"):
            what, example = ("region", examples[0]) if key == "region" else ("id", examples[1])
            text = f"{values[key]!r} is no {what} of {cloud}; one is like {example}"
        elif key == "endpoint_url":
            text = f"--endpoint-url {values[key]!r}: an URL begins with https:// or http://"
        else:
            said = str(problem["msg"]).removeprefix("Value error, ")
            text = f"--{key.replace('_', '-')} {values[key]!r}: {said}"
        raise ConfigError(text) from None


_EXAMPLES = {
    "AliyunConfig": ("Alibaba Cloud", "cn-hangzhou", "i-bp1abcdefgh"),
    "AwsConfig": ("AWS", "us-east-1", "i-0123456789abcdef0"),
}
"""The cloud of a table, one of its regions, the form of its instances' ids."""


def _asked(read: Any) -> Found:
    """What the cloud says; its refusal as an error for people."""
    from qwenctl.cli.cloud.errors import raising_user_errors

    with raising_user_errors():
        found: Found = read()
    return found


def _show(name: str, found: Found, write: bool, config: str | None, json: bool) -> None:
    from dataclasses import asdict

    from qwenctl.admin.discover import section

    text = section(name, found)
    for warning in found.warnings:
        line = f"warning: {escape_control(warning, ' ')}"
        print(paint(line, "red", bold=True, stream=sys.stderr), file=sys.stderr)
    path, filled = _write(config, name, found, text) if write else (None, False)
    if json:
        print_json({"name": name, **asdict(found), "section": text, "file": path and str(path)})
    elif path is None:
        print(text, end="")
    else:
        done = f"Filled in [gpu.{name}.{found.cloud}] of" if filled else f"Added [gpu.{name}] to"
        print(f"{done} {path}.")
        print("Next: `qwenctl provision` for the agent, then `qwenctl doctor`.")


def _write(given: str | None, name: str, found: Found, text: str) -> tuple[Path, bool]:
    """Put the section at the end of the config file, which is made if there is none. A GPU of the
    same cloud whose instance was left open, as `qwenctl init` does, is filled in: True then.

    Raises:
        ConfigError: the file has such a GPU already, or cannot be read or written.
    """
    from qwenctl.config.edit import edit, with_keys
    from qwenctl.config.loading import config_path, load_config
    from qwenctl.errors import ConfigError

    path = config_path(given or context.config_file()) or Path("qwenctl.toml")
    filled = False

    def change(before: str) -> str:
        nonlocal filled
        gpu = load_config(str(path), env={}).gpu.get(name) if before else None
        if gpu is not None:
            table = gpu.settings
            if (
                gpu.provider != found.cloud
                or table.instance_id
                or table.region not in ("", found.settings["region"])
            ):
                raise ConfigError(
                    f"{path} has [gpu.{name}] already; choose another --name, or edit the file"
                )
            filled = True
            after = with_keys(before, ("gpu", name, found.cloud), found.settings)
            if found.price is None or gpu.price_per_hour:
                return after
            return with_keys(after, ("gpu", name), {"price_per_hour": found.price})
        line_end = "" if before.endswith("\n") or not before else "\n"
        return before + line_end + ("\n" if before else "") + text

    edit(path, change, env={})
    return path, filled
