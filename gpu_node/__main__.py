"""The command ``qwenctl-node`` (also ``python -m gpu_node``)."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from gpu_node.agent import EXIT_RELOAD, Agent
from gpu_node.client import ProxyClient
from gpu_node.machine.interruption import InterruptionWatch
from gpu_node.selfstop.agent_lock import take_lock
from gpu_node.selfstop.deadman import DeadMan, power_off
from gpu_node.services.docker import DockerRuntime
from gpu_node.services.docker_ownership import container_key
from gpu_node.services.orphans import OrphanKiller, kill_orphans, owner_mark
from gpu_node.services.process import ProcessRuntime
from gpu_node.settings import (
    CONTAINER_KEY,
    STATE_FILES,
    NodeSettings,
    load_settings,
    save_last_good,
)
from gpu_node.setup import COMMANDS
from gpu_node.status_file import StatusFile
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import exposed, private_directory
from qwenctl.lib.text import plain
from qwenctl.lib.version import full_version

log = logging.getLogger("gpu_node")

_LIST = "\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())

EXAMPLES = f"""\
commands (each has a --help):
  {"run":10}run the agent until it is stopped; so does no command at all
{_LIST}

settings (in the file, or in the environment as QWENCTL_NODE__KEY):
  proxy_urls         where the proxies are, tried in turn
  gpu                this GPU's name in the proxy's configuration
  node_secret_file   a file with the deployment's node secret
  cloud              aliyun or aws: watch for its spot interruption notices
  state_dir, log_dir, boot_id, booted_at, dead_man, power_off_command, metadata_url

examples:
  qwenctl-node --config /etc/qwenctl/node.toml
  sudo qwenctl-node install

  QWENCTL_NODE__PROXY_URLS='["http://10.0.0.5:8080"]' QWENCTL_NODE__GPU=main \\
  QWENCTL_NODE__NODE_SECRET_FILE=/etc/qwenctl-node.secret qwenctl-node

exit codes:
  0   stopped by a signal; every service is stopped
  2   the settings cannot be used
  70  no proxy was heard for too long and nothing was running: the instance should be off
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent until it is stopped, or another command; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(plain, streams)
    try:
        return _main(argv)
    finally:
        sys.stdout, sys.stderr = streams


def _main(argv: list[str]) -> int:
    if argv and argv[0] in COMMANDS:
        from gpu_node.setup import commands  # the agent itself needs none of it

        return commands.main(argv)
    if argv[:1] == ["run"]:
        del argv[0]
    parser = argparse.ArgumentParser(
        prog="qwenctl-node",
        description="Runs the GPU's services and tells the proxy how they are.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file with the settings")
    parser.add_argument("--version", action="store_true", help="print the version with its build")
    given = parser.parse_args(argv)
    if given.version:
        sys.stdout.write(f"{full_version()}\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.raiseExceptions = False  # a log that cannot be written is no reason for a traceback
    try:
        settings = load_settings(given.config, os.environ)
        secret = settings.read_secret()
        file = settings.node_secret_file
        if file and (who := exposed(Path(file).expanduser())):
            log.warning("secrets are open: %s", who)
        lock = _prepare(settings)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"qwenctl-node: {line}", file=sys.stderr)  # noqa: T201
        return 2
    with lock:
        code = _run(settings, secret, given.config)
    if code == EXIT_RELOAD:
        log.info("beginning anew")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    return code


def _problem(config: str | None) -> str:
    """Return why an agent that starts now cannot use its settings; empty: it can."""
    try:
        load_settings(config, os.environ).read_secret()
    except ConfigError as error:
        return str(error)
    return ""


def _prepare(settings: NodeSettings) -> TextIO:
    """Make the directories and take the lock that keeps a second agent from the same services.

    Raises:
        ConfigError: a directory cannot be written or is another user's, or another agent runs.
    """
    state_dir, log_dir = Path(settings.state_dir), Path(settings.log_dir)
    path = log_dir
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        private_directory(path := state_dir, STATE_FILES)
    except OSError as error:
        raise ConfigError(f"cannot make the directory {path}: {error.strerror}") from None
    return take_lock(state_dir)


def _run(settings: NodeSettings, secret: str, config: str | None) -> int:
    state_dir = Path(settings.state_dir)
    mark = owner_mark(state_dir)
    if left_over := kill_orphans(mark):
        log.warning("killed %d processes that an earlier agent left behind", left_over)
    boot_id = settings.this_boot()
    orphans = OrphanKiller()
    client = ProxyClient(settings.proxy_urls, secret, reread=settings.read_secret)
    agent = Agent(
        gpu=settings.gpu,
        boot_id=boot_id,
        client=client,
        runtimes={
            "process": ProcessRuntime(Path(settings.log_dir), orphans, mark, os.environ),
            "docker": DockerRuntime.of(settings, container_key(state_dir / CONTAINER_KEY, secret)),
        },
        dead_man=DeadMan(state_dir / "deadman.json", boot_id, settings.dead_man),
        power_off=lambda: power_off(settings.power_off_command),
        booted_at=settings.booted_at,
        spec_file=state_dir / "spec.json",
        status_file=StatusFile(state_dir / "status.json"),
        disk=settings.state_dir,
        keep_services=settings.keep_containers,
        settings_problem=lambda: _problem(config),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.request_stop())
    watch = None
    if settings.cloud:
        watch = InterruptionWatch(
            settings.cloud,
            agent.interrupted,
            url=settings.metadata_url,
            boot_id=boot_id,
            told_file=state_dir / "notice.json",
        )
        watch.start()
    try:
        save_last_good(settings)  # for a watchdog that cannot use them any more
    except OSError as error:
        log.warning("cannot keep a copy of the settings: %s", error.strerror)
    log.info("agent %s for %s, boot %s", full_version(), settings.gpu, boot_id)
    code = agent.run()
    if watch:
        watch.stop()
    kill_orphans(mark)  # what left its process group on purpose
    orphans.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
