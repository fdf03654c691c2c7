"""``python -m gpu_node.watchdog``: stop the instance if the agent does not.

A systemd timer runs it each minute, without the agent's program: an upgrade that breaks that must not
break the watchdog. It reads from the disk when the agent last heard a proxy, and the last spec.
Time is the monotonic clock's, which is never set.

============================  ============================================================
the agent                     counted from
============================  ============================================================
has noted a contact           that contact, whether the agent runs, hangs or is gone
runs, without such a note     never: it counts for itself
is gone, without such a note  when the watchdog last saw it run in this boot, else the
                              watchdog's first look in this boot: an instance may have been
                              up for long when the agent is installed
============================  ============================================================

The limit is the agent's own and `MARGIN`, so that an agent that works always comes first. An agent
whose settings cannot be used does not run; the watchdog reads those of its last start.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_node.machine.nvidia import GpuWatch
from gpu_node.selfstop.agent_lock import LOCK, agent_runs, lock_holder
from gpu_node.selfstop.busy import busy_for_a_while, read_spec
from gpu_node.selfstop.deadman import EXIT_POWER_OFF, power_off, read_contact
from gpu_node.settings import STATE_FILES, NodeSettings, load_last_good, load_settings, state_dir_of
from qwenctl.errors import ConfigError
from qwenctl.lib.private_file import open_private, write_note

log = logging.getLogger(__name__)

MARGIN = 120.0
"""Seconds by which the agent comes first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Look once; return the exit code of `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_node.selfstop.watchdog",
        description="Stop this instance if nobody is in charge of it.",
    )
    parser.add_argument("--config", metavar="FILE", help="the agent's settings")
    given = parser.parse_args(argv)
    return run(given.config)


def run(config: str | None) -> int:
    """Look once, with these settings or the last usable ones.

    Args:
        config: the settings' file; None: the environment has them all.

    Returns:
        `EXIT_POWER_OFF`: the instance should be off now. Else 0, or 2 if the settings cannot be
        used, or the agent's files not be read.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return watch(load_settings(config, os.environ))
    except ConfigError as error:
        for line in str(error).splitlines():
            log.error("%s", line)
    settings = load_last_good(config, os.environ)
    if settings is None:
        state_dir = state_dir_of(config, os.environ)
        if not Path(state_dir).is_dir():
            return 2  # there never was an agent
        log.error("nor are there earlier ones: how this instance is stopped is not known here")
        # Where systemd does it, the exit code is enough.
        settings = NodeSettings.model_construct(proxy_urls=(), gpu="", state_dir=state_dir)
    return watch(settings) or 2


@dataclass(frozen=True)
class Overdue:
    """The time without a proxy or an agent, in seconds."""

    silent: float
    limit: float
    agent: bool
    """Whether an agent runs, well or not."""
    first: bool = False
    """Whether there is no record of this boot yet: the count begins now."""

    @property
    def left(self) -> float:
        """Seconds until the instance is stopped; negative once that is due."""
        return self.limit - self.silent


def watch(
    settings: NodeSettings,
    *,
    stop: Callable[[Sequence[str]], None] = power_off,
    gpus: GpuWatch | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Look once, and stop the instance if that is due and nothing generates.

    Returns:
        `EXIT_POWER_OFF` if the instance should be off now, 2 if nobody can tell, else 0.
    """
    if file := unreadable(Path(settings.state_dir)):
        log.error("cannot read %s: run it as root or as the agent's user", file)
        return 2
    if (holder := lock_holder(Path(settings.state_dir))) and holder.foreign:
        log.warning("%s holds %s, and is no agent", holder, Path(settings.state_dir, LOCK))
    found = _look_and_note(settings, clock())
    if found is None:
        return 0
    if found.left > 0:
        if not found.agent:
            log.warning("no agent runs; this instance stops itself in %.0f s", found.left)
        return 0
    spec = read_spec(Path(settings.state_dir, "spec.json"))
    if busyness := busy_for_a_while(spec, gpus or GpuWatch(), sleep):
        log.warning(
            "no proxy that needs this instance was heard for %.0f s, but work goes on: %s",
            found.silent,
            busyness,
        )
        return 0
    # Meanwhile the agent may have come back.
    found = _look_and_note(settings, clock())
    if found is None or found.left > 0:
        return 0
    log.warning(
        "no proxy that needs this instance was heard for %.0f s, %s, and nothing is running: this instance stops itself",
        found.silent,
        "the agent hangs" if found.agent else "there is no agent",
    )
    stop(settings.power_off_command)
    return EXIT_POWER_OFF


def look(settings: NodeSettings, now: float) -> Overdue | None:
    """Return how overdue the instance is; None: an agent runs and counts for itself."""
    state_dir = Path(settings.state_dir)
    boot_id = settings.this_boot()
    limit = _limit(settings) + MARGIN
    runs = agent_runs(state_dir)
    contact = read_contact(state_dir / "deadman.json", boot_id, now)
    if contact is not None:
        if runs and _read_only(state_dir):
            return None  # the note may be old because it cannot be written
        return Overdue(now - contact, limit, runs)
    if runs:
        return None
    seen = read_contact(state_dir / "watchdog.json", boot_id, now)
    return Overdue(0.0 if seen is None else now - seen, limit, runs, first=seen is None)


def unreadable(state_dir: Path) -> Path | None:
    """Return the first of the agent's files that this user may not read; None: there is none."""
    for name in STATE_FILES:
        try:
            os.close(open_private(state_dir / name))
        except PermissionError:
            return state_dir / name
        except OSError:
            continue
    return None


def _limit(settings: NodeSettings) -> float:
    """Return the limit of the agent's own switch: of the spec, else of the settings."""
    spec = read_spec(Path(settings.state_dir, "spec.json"))
    if spec is not None and math.isfinite(spec.dead_man) and spec.dead_man > 0:
        return spec.dead_man
    return settings.dead_man


def _read_only(directory: Path) -> bool:
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _look_and_note(settings: NodeSettings, now: float) -> Overdue | None:
    """Call `look`, and keep a note for the next look in case the agent leaves none."""
    found = look(settings, now)
    if found is not None and not found.first:
        return found
    file = Path(settings.state_dir, "watchdog.json")
    try:
        write_note(file, json.dumps({"boot_id": settings.this_boot(), "last": now}))
    except OSError as error:
        log.warning("cannot write %s: %s", file, error.strerror)
        if found is not None:  # else each look would be the first
            return replace(found, silent=now - min(settings.booted_at, now))
    return found


if __name__ == "__main__":
    sys.exit(main())
