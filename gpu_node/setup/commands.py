"""The commands of ``qwenctl-node`` beside running the agent."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_node.selfstop import watchdog
from gpu_node.selfstop.agent_lock import LOCK, Holder, lock_holder
from gpu_node.selfstop.deadman import read_contact
from gpu_node.settings import NodeSettings, load_settings
from gpu_node.setup import COMMANDS, bake, doctor
from gpu_node.setup.install import UNIT_DIR, describe, install, uninstall
from gpu_node.setup.systemd_units import AGENT, TIMER, WATCHDOG, render
from gpu_node.status_file import read_status
from qwenctl.errors import ConfigError, UserError
from qwenctl.lib.findings import Finding, Level, fail, ok
from qwenctl.lib.text import escape_control, log_line

CONFIG = "/etc/qwenctl/node.toml"

LINES = "200"


def main(argv: Sequence[str]) -> int:
    """Carry out a command of `COMMANDS`; return the exit code."""
    given = _parser().parse_args(argv)
    try:
        return int(given.run(given))
    except UserError as error:
        for line in str(error).splitlines():
            print(f"qwenctl-node: {line}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwenctl-node")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=COMMANDS[name], description=COMMANDS[name])
        made.add_argument(
            "--config", metavar="FILE", default="", help=f"the settings; default: {CONFIG}"
        )
        made.set_defaults(run=run)
        return made

    made = add("install", _install)
    made.add_argument(
        "--user", default="", help="who it runs as; default: qwenctl, made if missing"
    )
    made.add_argument(
        "--runs",
        choices=("docker", "process"),
        default="",
        help="docker: all services are containers, and the unit is hardened accordingly; "
        "default: by what the proxy has said last, else process",
    )
    made.add_argument("--no-start", action="store_true", help="only enable it: for an image")
    made.add_argument("--print", action="store_true", help="print the units and change nothing")
    made.add_argument("--dry-run", action="store_true", help="say what would be done")
    made = add("uninstall", _uninstall)
    made.add_argument("--purge", action="store_true", help="remove state and logs, too")
    made.add_argument("--dry-run", action="store_true", help="say what would be done")
    add("status", _status).add_argument("--json", action="store_true")
    made = add("logs", _logs)
    made.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    made.add_argument("service", nargs="?", default="", help="default: the agent itself")
    add("doctor", _doctor).add_argument("--json", action="store_true")
    made = add("bake", _bake)
    made.add_argument("--check", action="store_true", help="change nothing, only check")
    made.add_argument(
        "--clean",
        action="store_true",
        help="also remove what identifies this machine: machine-id, SSH host keys, cloud-init state",
    )
    made.add_argument("--json", action="store_true", help="print the checks as JSON")
    add("watchdog", _watchdog)
    return parser


def _install(given: argparse.Namespace) -> int:
    settings = _settings(given)
    node = describe(settings, Path(_config(given) or CONFIG), user=given.user, runs=given.runs)
    if given.print:
        for name, text in render(node).items():
            _say(f"# {UNIT_DIR / name}\n{text}")
    else:
        install(node, settings, start=not given.no_start, dry_run=given.dry_run, say=_say)
    return 0


def _uninstall(given: argparse.Namespace) -> int:
    try:
        settings: NodeSettings | None = _settings(given)
    except ConfigError:
        if given.purge:
            raise
        settings = None  # the units can be removed without
    uninstall(settings, purge=given.purge, dry_run=given.dry_run, say=_say)
    return 0


def _status(given: argparse.Namespace) -> int:
    settings = _settings(given)
    state_dir = Path(settings.state_dir)
    if file := watchdog.unreadable(state_dir):
        raise UserError(f"cannot read {file}: use sudo")
    now = time.monotonic()
    boot_id = settings.this_boot()
    known = read_status(state_dir / "status.json")
    holder = lock_holder(state_dir)
    if known.get("boot_id") != boot_id or holder is None or not _reports(holder, known):
        known = {}  # of another boot, or of an agent that is gone
    runs = bool(known)
    contact = read_contact(state_dir / "deadman.json", boot_id, now)
    overdue = watchdog.look(settings, now)
    units = {unit: doctor.unit_state(unit) for unit in (AGENT, TIMER)}
    view: dict[str, Any] = {
        "gpu": settings.gpu,
        "agent_running": runs,
        "lock_holder": None if holder is None else str(holder),
        "since": known.get("started"),
        "version": known.get("version"),
        "state": known.get("state"),
        "error": known.get("error", ""),
        "active": known.get("active"),
        "services": known.get("services", []),
        "seconds_since_contact": None if contact is None else round(now - contact, 1),
        "seconds_until_watchdog": (
            None if overdue is None or overdue.first or not units[TIMER] else round(overdue.left, 1)
        ),
        "units": units,
    }
    if given.json:
        _say(json.dumps(view, indent=2))
    else:
        _print_status(view)
    return 0 if runs else 1


def _reports(holder: Holder, status: dict[str, Any]) -> bool:
    """Whether what was reported last is of the process that holds the lock, as far as is known."""
    return not holder.foreign and holder.pid in (None, status.get("pid"))


def _print_status(view: dict[str, Any]) -> None:
    if view["agent_running"]:
        since = view["since"]
        age = (
            f", for {_span(max(0.0, time.time() - since))}"
            if isinstance(since, (int, float))
            else ""
        )
        _say(f"agent of {view['gpu']}: running{age}, version {view['version'] or 'unknown'}")
        _say(f"state: {view['state'] or 'no report yet'}")
        if view["error"]:
            _say(f"error: {_first_line(view['error'])}")
    elif view["lock_holder"]:
        _say(
            f"agent of {view['gpu']}: not known to run: {view['lock_holder']} holds {LOCK}, but no "
            "agent reports in this boot; it may have just begun, or cannot write its state"
        )
    else:
        _say(f"agent of {view['gpu']}: not running")
    contact = view["seconds_since_contact"]
    _say("last contact: " + ("none noted" if contact is None else f"{_span(contact)} ago"))
    for service in view["services"]:
        error = f": {_first_line(service['error'])}" if service.get("error") else ""
        restarts = f", {service['restarts']} restarts" if service.get("restarts") else ""
        _say(f"  {service['name']}: {service['state']}, port {service['port']}{restarts}{error}")
    if not view["agent_running"] and not view["units"][TIMER]:
        _say("no watchdog is installed: nothing stops this instance")
    elif not view["agent_running"] and view["seconds_until_watchdog"] is not None:
        _say(f"the watchdog stops this instance in {_span(max(0, view['seconds_until_watchdog']))}")
    for unit, state in view["units"].items():
        found = f"{state['ActiveState']}, {state['UnitFileState']}" if state else "not installed"
        _say(f"{unit}: {found}")


def _logs(given: argparse.Namespace) -> int:
    if not given.service:
        if shutil.which("journalctl") is None:
            raise UserError("there is no journal here; the agent's log is where it was started")
        command = ["journalctl", "--unit", AGENT, "--unit", WATCHDOG, "--lines", LINES]
        command += ["--follow"] if given.follow else ["--no-pager"]
    else:
        log_dir = Path(_settings(given).log_dir)
        try:
            known = sorted(file.stem for file in log_dir.glob("*.log") if file.is_file())
            if not known:
                next(log_dir.iterdir(), None)  # glob says nothing of a directory it may not read
        except OSError as error:
            raise UserError(f"{log_dir}: {error.strerror}; use sudo?") from None
        if given.service not in known:
            named = ", ".join(known) or "none"
            raise UserError(f"no log of a service {given.service!r}; there are: {named}")
        command = ["tail", "-n", LINES, *(["-F"] if given.follow else [])]
        command.append(str(log_dir / f"{given.service}.log"))
    sys.stdout.flush()
    if not (given.service and sys.stdout.isatty()):
        os.execvp(command[0], command)  # noqa: S606
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as tail:
            for line in tail.stdout or ():
                _say(log_line(line.rstrip("\n")))
        return tail.returncode
    except OSError as error:
        raise UserError(f"{command[0]}: {error.strerror}") from None


def _doctor(given: argparse.Namespace) -> int:
    try:
        settings = _settings(given)
        found = _config(given) or "environment"
        findings = [ok("settings", found), *doctor.check(settings)]
    except ConfigError as error:
        findings = [
            fail("settings", found, fix or "correct the settings")
            for found, _, fix in (line.partition("; ") for line in str(error).splitlines())
        ]
    return _show(findings, given.json, "would keep this node from working.", "All is well.")


def _bake(given: argparse.Namespace) -> int:
    settings = _settings(given)
    if not given.check:
        out = sys.stderr if given.json else sys.stdout
        bake.bake(settings, clean=given.clean, say=lambda text: print(text, file=out, flush=True))
    return _show(
        list(bake.check(settings)),
        given.json,
        "have to be mended before a snapshot.",
        "Ready. Stop the instance in the cloud now (`qwenctl block`), then make the image of it.",
    )


def _show(findings: Sequence[Finding], as_json: bool, bad: str, good: str) -> int:
    """Print the findings and what they amount to; return the exit code."""
    failed = sum(finding.level is Level.FAIL for finding in findings)
    if as_json:
        keys = ("level", "check", "found", "fix")
        checks = [{key: getattr(finding, key) for key in keys} for finding in findings]
        _say(json.dumps({"ok": not failed, "checks": checks}, indent=2))
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            level = "FAIL" if finding.level is Level.FAIL else finding.level.value
            _say(f"{level:5} {finding.check:{width}}  {escape_control(finding.found, ' ')}")
            if finding.fix and finding.level is not Level.OK:
                _say(f"{'':5} {'':{width}}  -> {escape_control(finding.fix, ' ')}")
        _say(f"\n{failed} of these {bad}" if failed else f"\n{good}")
    return 1 if failed else 0


def _watchdog(given: argparse.Namespace) -> int:
    return watchdog.run(_config(given))


def _settings(given: argparse.Namespace) -> NodeSettings:
    return load_settings(_config(given), os.environ)


def _config(given: argparse.Namespace) -> str | None:
    """Return the settings' file; None where the environment has them all."""
    if given.config:
        return str(given.config)
    complete = "QWENCTL_NODE__PROXY_URLS" in os.environ and not Path(CONFIG).exists()
    return None if complete else CONFIG


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _first_line(text: str) -> str:
    return escape_control((text.splitlines() or [""])[0], " ")


def _span(seconds: float) -> str:
    """Format a length of time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
