"""`qwenctl provision`: print or apply an instance's needs before its first wake."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenctl.admin.permissions import node_policy, node_trust
from qwenctl.admin.plan import make_plan, role_commands
from qwenctl.cli.cloud.errors import raising_user_errors
from qwenctl.cli.common.context import load, print_json
from qwenctl.cli.common.terminal import paint
from qwenctl.clouds.admin import admin_of
from qwenctl.clouds.permissions import node_role_name
from qwenctl.clouds.plan import IMAGE_FOR_CONTAINERS, SECRET_FILE, UNIT, Change, Plan
from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.errors import ConfigError, UserError
from qwenctl.lib.private_file import write_private


def prepare(
    gpu: str | None,
    fallback: str,
    sources: Sequence[str],
    only: str,
    user: str,
    package: str,
    output: Path | None,
    with_secret: bool,
    apply: bool,
    dry_run: bool,
    security_group: str,
    config: str | None,
    json: bool,
) -> None:
    """Do `qwenctl provision`; ``only``: the part to print alone, or empty."""
    loaded = load(config)
    name = loaded.gpu_name(gpu)
    if fallback:
        loaded = _with_fallback(loaded, name, fallback)
    plan = make_plan(loaded, name, sources=sources, user=user, package=package)
    if not plan.agent and (only not in ("", "rules") or with_secret):
        raise ConfigError(f"gpu.{name} has agent = false: its instance needs the rules only")
    if with_secret and (output is None or only not in ("user-data", "script")):
        raise ConfigError(
            "--with-secret needs --output FILE and --only user-data or --only script: "
            "the secret is not printed"
        )
    if apply:
        _apply(loaded, plan, security_group, dry_run=dry_run, json=json)
    elif dry_run:
        raise ConfigError("--dry-run goes with --apply; without it nothing is changed anyway")
    elif only or output is not None:
        text = _part(plan, only, loaded.usable_node_secret() if with_secret else "")
        _write(output, text) if output else print(text, end="")
    elif json:
        print_json(_as_json(plan))
    else:
        _print_all(loaded, plan)


def _part(plan: Plan, part: str, secret: str) -> str:
    if part == "script":
        return plan.script(secret)
    if part == "user-data":
        return plan.user_data(secret)
    found = _as_json(plan)
    return json_module.dumps(found[part] if part else found, indent=2) + "\n"


def _as_json(plan: Plan) -> dict[str, Any]:
    role, admin = None, admin_of(plan.cloud)
    if plan.instance is not None:
        role = {
            "name": node_role_name(plan.instance),
            "trust": node_trust(plan.cloud, plan.instance.region),
            "policy": node_policy([plan.instance]),
            "needed": not (admin and admin.ROLE_NOT_NEEDED),
            "commands": role_commands(plan),
        }
    return {
        "gpu": plan.gpu,
        "cloud": plan.cloud,
        "rules": [asdict(rule) for rule in plan.rules],
        "role": role,
        "user-data": plan.user_data(),
        "script": plan.script(),
    }


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    print(f"Wrote {path}, readable by you only.")


def _print_all(config: Config, plan: Plan) -> None:
    found = _as_json(plan)
    _heading(f"1. Inbound rules of the security group of gpu.{plan.gpu}")
    if plan.rules:
        for rule in plan.rules:
            print(f"allow tcp {rule.port} from {rule.source}    # {rule.description}")
    else:
        print("proxy.node_urls has no address in it; say where the proxy's requests come from:")
        print("  qwenctl provision --from 10.0.0.5/32")
    print("No other inbound rule is needed. `qwenctl provision --apply` adds what is missing.")
    if not plan.agent:
        print("\nagent = false: no role, no agent and no secret are needed. See docs/agentless.md.")
        return
    _heading("2. Role of the instance")
    admin = admin_of(plan.cloud)
    if admin and admin.ROLE_NOT_NEEDED:
        print("\n".join(admin.ROLE_NOT_NEEDED))
    elif found["role"] is None:
        print(
            f"First set instance_id in [gpu.{plan.gpu}.{plan.cloud}]: the policy names the instance."
        )
    else:
        print("An instance role for ECS, so that the node can stop itself and end its billing.")
        print("`qwenctl provision --apply` makes and attaches it. Trust policy:")
        print(json_module.dumps(found["role"]["trust"], indent=2))
        print(f"Permissions (also `qwenctl permissions {plan.cloud} --node`):")
        print(json_module.dumps(found["role"]["policy"], indent=2))
        print(
            "By hand, with Alibaba Cloud's own command line. An instance has one role at most: if"
        )
        print("it has one, attach the policy to that one (third command) and leave the last out.")
        for command in found["role"]["commands"]:
            print(f"  {command}")
    _heading("3. User data of a new instance (--only user-data; --only script for an existing one)")
    if plan.containers:
        print(f"Its services are containers: it needs {IMAGE_FOR_CONTAINERS}.\n")
    print(plan.user_data(), end="")
    _heading("4. The node secret")
    for line in _secret_words(config, plan):
        print(line)


def _secret_words(config: Config, plan: Plan) -> list[str]:
    """Describe how the secret gets to the node, without showing it."""
    if config.node_secret.get_secret_value():
        return [
            "It is in the configuration or in QWENCTL_NODE_SECRET. To have it in the user data:",
            f"  qwenctl provision --gpu {plan.gpu} --only user-data --with-secret -o FILE",
        ]
    path = (
        Path(config.node_secret_file).expanduser()
        if config.node_secret_file
        else config.state_path / "node.secret"
    )
    install = f"install -m 600 -o {plan.user} /dev/stdin {SECRET_FILE}"
    lines = [
        "Copy it once the instance is up, then start the service:",
        f"  ssh root@NODE '{install} && systemctl start {UNIT}' < {shlex.quote(str(path))}",
        "Without it the instance stops itself some minutes after each boot (see docs/node-install.md).",
    ]
    if not path.is_file():
        lines.insert(0, "`qwenctl serve` makes it at its first start.")
    return lines


def _with_fallback(config: Config, name: str, fallback: str) -> Config:
    """Return the configuration with that fallback as the GPU's own instance."""
    others = dict(config.gpu[name].candidates()[1:])
    if fallback not in others:
        known = ", ".join(others) or "none"
        raise ConfigError(f"gpu.{name} has no fallback {fallback!r}; known: {known}")
    return config.model_copy(update={"gpu": {**config.gpu, name: others[fallback]}})


def _heading(text: str) -> None:
    print(f"\n{paint(text, bold=True)}\n" if sys.stdout.isatty() else f"\n{text}\n")


def _apply(config: Config, plan: Plan, group: str, *, dry_run: bool, json: bool) -> None:
    found: dict[str, Any] = {"gpu": plan.gpu, "dry_run": dry_run, "changes": []}
    try:
        with raising_user_errors():
            for change in _changes(config, plan, group, dry_run):
                found["changes"].append(asdict(change))
                if not json:  # at once: the next change may be refused
                    print(f"{change.done}: {change.what}", flush=True)
    except UserError as error:
        found["error"] = str(error)
        raise
    finally:
        if json and found["changes"]:
            print_json(found)
    if json:
        return
    if dry_run:
        print("Nothing was changed.")
    elif plan.agent:
        print("Not done: agent and node secret; `qwenctl provision` prints what to do.")


def _changes(config: Config, plan: Plan, group: str, dry_run: bool) -> Iterator[Change]:
    gpu = config.gpu[plan.gpu]
    # Run the provider's checks, such as of endpoints, without the fallbacks.
    make_provider(plan.gpu, gpu.model_copy(update={"fallback": ()}), config)
    if (admin := admin_of(plan.cloud)) is not None:
        yield from admin.apply(gpu.settings, plan, group, dry_run=dry_run)
