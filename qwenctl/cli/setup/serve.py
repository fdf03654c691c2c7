"""`qwenctl serve`: replace this process by the proxy."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from qwenctl.admin.validation import check_password, node_url_warnings
from qwenctl.cli.common.context import load
from qwenctl.cli.common.terminal import warn
from qwenctl.errors import UserError
from qwenctl.lib.extras import how_to_install, lacking


def proxy_command(config_path: str) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of the proxy for this config file (empty: none).

    The wheel installs it as ``qwenctl_proxy``; in a checkout it is the folder ``proxy``, which must
    win over any other package of that name (docs/decisions/0001-the-name-proxy.md): the checkout
    goes first on PYTHONPATH, and ``-P`` keeps the working directory out.

    Raises:
        UserError: it is not installed, or one of its packages is not.
    """
    if lack := lacking("proxy"):
        raise UserError(lack)
    env = dict(os.environ)
    command = [sys.executable]
    if importlib.util.find_spec("qwenctl_proxy") is not None:
        command += ["-m", "qwenctl_proxy"]
    else:
        checkout = Path(__file__).resolve().parents[3]
        if not (checkout / "proxy" / "__main__.py").is_file():
            raise UserError(f"the proxy is not installed: {how_to_install('proxy')}")
        before = env.get("PYTHONPATH")
        env["PYTHONPATH"] = str(checkout) + (os.pathsep + before if before else "")
        if sys.version_info >= (3, 11):
            command.append("-P")
        command += ["-m", "proxy"]
    if config_path:
        command += ["--config", config_path]
    return command, env


def serve(listen: str | None, config: str | None) -> None:
    """Do `qwenctl serve`."""
    if listen:
        os.environ["QWENCTL_PROXY__LISTEN"] = listen
    loaded = load(config)  # reports a mistake in one sentence
    if not loaded.gpu:
        from qwenctl.control.left_on import check_any

        check_any(loaded)
    loaded.check_listen()
    check_password(loaded)
    command, env = proxy_command(loaded.source)
    for text in node_url_warnings(loaded):
        warn(f"warning: {text}")
    sys.stdout.flush()
    os.execve(command[0], command, env)  # noqa: S606
