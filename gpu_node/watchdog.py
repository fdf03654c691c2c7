"""``python -m gpu_node.watchdog``: stops the instance if the agent, whose task that is, does not.

A systemd timer runs it each minute, not by way of the agent's program: what breaks that, such as an
upgrade that went wrong, must not break this. It keeps no process of its own, and goes by what is on the disk:
when the agent last heard a proxy, and what it was told to run. Time is the monotonic clock's, which
nobody sets.

============================  ==========================================================
the agent                     counted from
============================  ==========================================================
has noted a contact           that contact, whether the agent runs, hangs or is gone
runs, without such a note     never: it counts for itself
is gone, without such a note  when the watchdog last saw it run in this boot, else the boot,
                              or the node secret if that has come later
============================  ==========================================================

The limit is the agent's own and `MARGIN`, so that an agent that works always comes first.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_node.busy import busy_for_a_while, read_spec
from gpu_node.deadman import EXIT_POWER_OFF, SelfStop, read_contact, self_stop
from gpu_node.nvidia import GpuWatch
from gpu_node.settings import NodeSettings, SettingsError, load_settings

__all__ = ["MARGIN", "Overdue", "agent_runs", "look", "main", "watch"]

log = logging.getLogger(__name__)

MARGIN = 120.0
"""Seconds that the agent has to do it first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Look once; the exit code: 0, or `EXIT_POWER_OFF`, or 2 for settings that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_node.watchdog",
        description="Stop this instance if nobody is in charge of it.",
    )
    parser.add_argument("--config", metavar="FILE", help="the agent's settings")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = load_settings(given.config, os.environ)
    except SettingsError as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        return 2
    return watch(settings)


@dataclass(frozen=True)
class Overdue:
    """How long nobody has been in charge of this instance, in seconds."""

    silent: float
    limit: float
    agent: bool
    """Whether an agent runs, well or not."""

    @property
    def left(self) -> float:
        """Seconds until the instance is stopped; negative once that is due."""
        return self.limit - self.silent


def watch(
    settings: NodeSettings,
    *,
    stop: SelfStop | None = None,
    gpus: GpuWatch | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Look once, and stop the instance if that is due and nothing generates.

    Returns:
        `EXIT_POWER_OFF` if the instance should be off now, else 0.
    """
    found = look(settings, clock())
    if found is None:
        _note_that_it_runs(settings, clock())
        return 0
    if found.left > 0:
        if not found.agent:
            log.warning("no agent runs; this instance stops itself in %.0f s", found.left)
        return 0
    spec = read_spec(Path(settings.state_dir, "spec.json"))
    if busyness := busy_for_a_while(spec, gpus or GpuWatch(), sleep):
        log.warning("no proxy heard for %.0f s, but work goes on: %s", found.silent, busyness)
        return 0
    # Meanwhile the agent may have come back.
    found = look(settings, clock())
    if found is None or found.left > 0:
        return 0
    log.warning(
        "no proxy heard for %.0f s, %s, and nothing is running: this instance stops itself",
        found.silent,
        "the agent hangs" if found.agent else "there is no agent",
    )
    (stop or self_stop(settings.power_off_command)).power_off()
    return EXIT_POWER_OFF


def look(settings: NodeSettings, now: float) -> Overdue | None:
    """How overdue the instance is; None: an agent runs and counts for itself."""
    state_dir = Path(settings.state_dir)
    boot_id = settings.this_boot()
    limit = _limit(settings) + MARGIN
    runs = agent_runs(state_dir)
    booted = min(settings.booted_at, now)
    contact = read_contact(state_dir / "deadman.json", boot_id, now)
    if contact is not None:
        if runs and _read_only(state_dir):
            return None  # the note may be old because it cannot be written
        return Overdue(now - contact, limit, runs)
    if runs:
        return None
    seen = read_contact(state_dir / "watchdog.json", boot_id, now)
    since = max(booted, seen or 0.0, now - _secret_age(settings))
    return Overdue(now - since, limit, runs)


def agent_runs(state_dir: Path) -> bool:
    """Whether an agent holds the lock."""
    try:
        with Path(state_dir, "agent.lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _secret_age(settings: NodeSettings) -> float:
    """Seconds since the node secret was put here: before that, no agent could run. Infinite if that
    is not known."""
    if not settings.node_secret_file:
        return math.inf
    try:
        written = Path(settings.node_secret_file).expanduser().stat().st_mtime
    except OSError:
        return math.inf
    return max(0.0, time.time() - written)


def _limit(settings: NodeSettings) -> float:
    """Seconds of the agent's own switch: the proxy's word, else the settings'."""
    spec = read_spec(Path(settings.state_dir, "spec.json"))
    if spec is not None and math.isfinite(spec.dead_man) and spec.dead_man > 0:
        return spec.dead_man
    return settings.dead_man


def _read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _note_that_it_runs(settings: NodeSettings, now: float) -> None:
    file = Path(settings.state_dir, "watchdog.json")
    try:
        file.write_text(json.dumps({"boot_id": settings.this_boot(), "last": now}))
    except OSError as error:
        log.warning("cannot write %s: %s", file, error.strerror)


if __name__ == "__main__":
    sys.exit(main())
