"""`qwenctl provision create` and `release`: an instance from a template."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from qwenctl.admin import create as admin_create
from qwenctl.admin.plan import make_plan
from qwenctl.cli.cloud.errors import raising_user_errors
from qwenctl.cli.common.context import load, open_store, print_json
from qwenctl.cli.common.context import user as whoami
from qwenctl.clouds.admin import Existing, InstanceCreator, LaunchRequest, Price, admin_of
from qwenctl.clouds.base import Denied, Transient
from qwenctl.clouds.plan import IMAGE_FOR_CONTAINERS, SECRET_FILE, Plan
from qwenctl.config.deployment import Config
from qwenctl.config.edit import check, edit, with_keys
from qwenctl.config.providers import make_provider
from qwenctl.errors import ConfigError, UserError
from qwenctl.lib.private_file import read_text

BLOCK = "release"
BLOCK_SECONDS = 120.0
"""The longest block of the GPU while its instance is deleted."""


def create(
    gpu: str | None,
    dry_run: bool,
    yes: bool,
    user: str,
    package: str,
    with_secret: bool,
    config: str | None,
    json: bool,
) -> None:
    """Do `qwenctl provision create`."""
    loaded = load(config)
    name = loaded.gpu_name(gpu)
    cloud = _cloud_of(loaded, name)
    plan = make_plan(loaded, name, user=user, package=package)
    table: Any = loaded.gpu[name].settings
    if table.instance_id:
        raise ConfigError(
            f"gpu.{name}.{cloud} has the instance {table.instance_id} already; release it "
            "first (`qwenctl provision release`), or give the new one a table of its own"
        )
    path = _file(loaded)
    user_data = ""  # an instance without an agent needs none
    if plan.agent:
        user_data = plan.user_data(loaded.usable_node_secret() if with_secret else "")
    with _advice(cloud):
        creator = _creator(loaded, name, user_data)
        # Check that the file can be written before anything costs.
        check(path, _with_id(read_text(path), name, cloud, "i-00000000"))
        found, price = admin_create.the_one(creator), creator.price()
        if not found and (dry_run or not yes):
            creator.check()
        if dry_run:
            _show_dry_run(creator, plan, table.template, found, price, json)
            return
        if not yes:
            _say(_what(creator, plan, table.template, found, price))
            _confirm(f"Type the name of the GPU ({name}) to go on", name)
        made, adopted = admin_create.create(creator)
    try:
        edit(path, lambda text: _with_id(text, name, cloud, made.id))
    except ConfigError as error:
        raise UserError(
            f"{made.id} is there, and not in the config file: {error}. Set instance_id = "
            f'"{made.id}" in [gpu.{name}.{cloud}]'
        ) from None
    _show_created(plan, made, adopted, price, path, _left(loaded, plan, price, with_secret), json)


def _show_created(
    plan: Plan,
    made: Existing,
    adopted: bool,
    price: Price,
    path: Path,
    left: list[str],
    json: bool,
) -> None:
    if json:
        print_json(
            {
                "gpu": plan.gpu,
                "cloud": plan.cloud,
                "instance_id": made.id,
                "adopted": adopted,
                "price_per_hour": price.per_hour,
                "currency": price.currency,
                "file": str(path),
                "left": left,
            }
        )
        return
    print(
        f"{'Took over' if adopted else 'Created'} {made.id}; it is billed while it runs, and no "
        "proxy stops it yet."
    )
    print(f"Wrote instance_id to {path}. Left to do:")
    for number, line in enumerate(left, 1):
        print(f"  {number}. {line}")


def release(
    gpu: str | None, dry_run: bool, yes: bool, force: bool, config: str | None, json: bool
) -> None:
    """Do `qwenctl provision release`."""
    loaded = load(config)
    name = loaded.gpu_name(gpu)
    cloud = _cloud_of(loaded, name)
    table: Any = loaded.gpu[name].settings
    instance_id = table.instance_id
    if not instance_id:
        raise ConfigError(f"gpu.{name}.{cloud} names no instance: there is nothing to release")
    path = _file(loaded)

    def without_id(text: str) -> str:
        text = with_keys(text, ("gpu", name, cloud), {"instance_id": None})
        if table.template.image_id:
            # A client token creates one instance: the next instance needs another.
            place = ("gpu", name, cloud, "template")
            text = with_keys(text, place, {"generation": table.template.generation + 1})
        return text

    check(path, without_id(read_text(path)))  # before anything is deleted
    result = {"gpu": name, "instance_id": instance_id}
    with _advice(cloud):
        creator = _creator(loaded, name)
        existing = admin_create.may_release(creator, instance_id, force=force)
        if not force:
            _check_free(loaded, name)
        if dry_run:
            if existing:
                creator.check_delete(existing, force=force)
            if json:
                print_json({**result, "gone": existing is None, "dry_run": True})
            else:
                verb = "delete" if existing else "forget"
                print(f"Would {verb} {instance_id}; nothing was changed.")
            return
        if existing and not yes:
            _say([f"{instance_id} ({existing.type}) and its system disk will be deleted for good."])
            _confirm(f"Type the name of the GPU ({name}) to delete it", name)
        with _kept_off(loaded, name, force):
            deleted = admin_create.release(creator, instance_id, force=force)
    edit(path, without_id)
    if json:
        print_json({**result, "gone": deleted is None, "dry_run": False, "file": str(path)})
        return
    print(f"{'Deleted' if deleted else 'It was gone already:'} {instance_id}.")
    print(f"Removed instance_id from {path}. Restart the proxy if it runs.")


def _cloud_of(config: Config, name: str) -> str:
    provider = config.gpu[name].provider
    if admin_of(provider) is None:
        raise ConfigError(
            f"gpu.{name} has the provider {provider!r}; instances are created for aliyun and aws"
        )
    return provider


def _creator(config: Config, name: str, user_data: str | None = None) -> InstanceCreator:
    """Make the creator of that GPU; without ``user_data`` it can delete only.

    Raises:
        ConfigError: the template or the region is missing.
    """

    gpu = config.gpu[name]
    cloud, table, admin = gpu.provider, gpu.settings, admin_of(gpu.provider)
    assert admin is not None  # see `_cloud_of`
    if not table.region:
        raise ConfigError(f"gpu.{name}.{cloud}.region is missing")
    missing = admin_create.missing_keys(table.template, admin.REQUIRED_KEYS)
    if user_data is not None and missing:
        raise ConfigError(f"gpu.{name}.{cloud}.template: missing {', '.join(missing)}")
    # Run the provider's own checks, such as of the endpoint, with any id.
    named = table.model_copy(update={"instance_id": table.instance_id or "i-00000000"})
    make_provider(name, gpu.model_copy(update={"fallback": (), cloud: named}), config)
    request = LaunchRequest(config.deployment, name, table.template.generation, user_data or "")
    return admin.make_creator(table, request, creating=user_data is not None)


@contextmanager
def _advice(cloud: str) -> Iterator[None]:
    """Turn the cloud's refusals into user errors with advice."""
    with raising_user_errors():
        try:
            yield
        except Denied as error:
            if not error.cloud_code.startswith(("Forbidden", "NoPermission", "Unauthorized")):
                raise
            more = f"; `qwenctl permissions {cloud} --admin` prints what create and release need"
            raise Denied(f"{error}{more}") from None
        except Transient as error:
            more = "; run the same command again: nothing is created or deleted twice"
            raise Transient(f"{error}{more}") from None


def _file(config: Config) -> Path:
    if not config.source:
        raise ConfigError("this needs a config file, to keep the instance's id in")
    return Path(config.source)


def _with_id(text: str, name: str, cloud: str, instance_id: str) -> str:
    """Return the config file's text with that instance id."""
    return with_keys(text, ("gpu", name, cloud), {"instance_id": instance_id})


def _what(
    creator: InstanceCreator, plan: Plan, template: Any, found: Existing | None, price: Price
) -> list[str]:
    """Describe, for people, what create does."""
    if found:
        words = (
            f"{found.id} ({found.type}, {found.state.value}) carries the tags of "
            f"gpu.{creator.request.gpu} and will be taken over; nothing is created."
        )
        return [words]
    cost = (
        f"{price.per_hour:g} {price.currency} an hour ({price.note})"
        if price.per_hour is not None
        else price.note
    )
    lines = [
        f"One {template.instance_type}, {template.market}, will be created and started.",
        f"Price: {cost}.",
        "Nobody will stop it until `qwenctl serve` is started anew, or you say `qwenctl down`.",
    ]
    if plan.agent:
        lines.append("Once it has the node secret, it will stop itself when no proxy is heard.")
    if plan.agent and plan.containers:
        lines.append(f"Its services are containers: it will need {IMAGE_FOR_CONTAINERS}.")
    return lines


def _show_dry_run(
    creator: InstanceCreator,
    plan: Plan,
    template: Any,
    found: Existing | None,
    price: Price,
    json: bool,
) -> None:
    if json:
        print_json(
            {
                "gpu": creator.request.gpu,
                "dry_run": True,
                "adopts": found.id if found else None,
                "instance_type": template.instance_type,
                "market": template.market,
                "price_per_hour": price.per_hour,
                "currency": price.currency,
                "note": price.note,
            }
        )
        return
    for line in _what(creator, plan, template, found, price):
        print(line.replace(" will ", " would "))
    if not found:
        print("The cloud would accept it; nothing was changed.")


def _left(config: Config, plan: Plan, price: Price, with_secret: bool) -> list[str]:
    """Return the steps that create leaves to the administrator."""
    name, itself = plan.gpu, ""
    left = [
        "`qwenctl provision --apply` opens the security group"
        + (", and on Alibaba Cloud makes the role" if plan.agent else ""),
        f"`qwenctl permissions {plan.cloud}` prints the proxy's rights: attach them to its role",
    ]
    if plan.agent:
        itself = "; it also stops itself when no proxy is heard"
        if plan.containers:
            left.append(
                f"the services need {IMAGE_FOR_CONTAINERS}: see `qwenctl-node doctor` there"
            )
        if not with_secret:
            itself += ", once the node secret is there"
            left.append(
                f"`qwenctl provision` prints the command that copies the node secret to {SECRET_FILE}"
            )
    if price.per_hour is not None and not config.gpu[name].price_per_hour:
        left.append(f"set price_per_hour = {price.per_hour:g} in [gpu.{name}]")
    left.append(
        "restart `qwenctl serve`: until then nobody stops the instance, but for `qwenctl down`; "
        f"then the proxy does when nobody needs it{itself}"
    )
    return [*left, "`qwenctl doctor` checks the whole"]


def _check_free(config: Config, name: str) -> None:
    leases = open_store(config).snapshot(name).leases
    if leases:
        held = ", ".join(sorted({lease.kind for lease in leases}))
        raise UserError(
            f"somebody needs gpu.{name} ({held}; see `qwenctl why`); "
            f"`qwenctl down --gpu {name}` first, or use --force"
        )


@contextmanager
def _kept_off(config: Config, name: str, force: bool) -> Iterator[None]:
    """Block wakes of the GPU, and check again that nobody needs it."""
    if force:
        yield
        return
    store = open_store(config)
    store.block(name, BLOCK, BLOCK_SECONDS, reason="its instance is released", actor=whoami())
    try:
        _check_free(config, name)
        yield
    finally:
        store.unblock(name, BLOCK, actor=whoami())


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _confirm(question: str, name: str) -> None:
    """Ask for the GPU's name as confirmation.

    Raises:
        ConfigError: there is no terminal, or another text was typed.
    """

    if not sys.stdin.isatty():
        raise ConfigError("nobody is there to confirm: use --yes")
    if typer.prompt(question, err=True, default="", show_default=False).strip() != name:
        raise ConfigError("not confirmed; nothing was changed")
