"""`qwenctl prewarm`: list, run, add and remove schedules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from qwenctl.cli.common.context import Target, heed_interrupt, load, open_store, print_json
from qwenctl.cli.common.terminal import paint, warn
from qwenctl.cli.use.follow import follow
from qwenctl.config.deployment import Config
from qwenctl.config.edit import check, edit, names_in, with_table, without_table
from qwenctl.config.read_schedules import machine_zone, schedules
from qwenctl.control.holders import of_schedule, usual_lead, write
from qwenctl.core.leases import PREWARM
from qwenctl.core.schedule import Schedule, Window
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY
from qwenctl.errors import ConfigError, UserError
from qwenctl.lib.private_file import read_text
from qwenctl.lib.text import duration
from qwenctl.store.store import Store

EARLY_SECONDS = 90.0
"""Seconds by which `run` may come too early: cron counts minutes, by another clock than the store."""


def _plans(config: Config, gpu: str | None) -> Iterator[tuple[str, Schedule]]:
    """Yield the schedules of the GPU, or of all GPUs."""
    for name in [config.gpu_name(gpu)] if gpu or not config.gpu else config.gpu:
        for schedule in schedules(config, name):
            yield name, schedule


def _named(config: Config, gpu: str | None, name: str | None) -> list[tuple[str, Schedule]]:
    plans = list(_plans(config, gpu))
    found = [(at, schedule) for at, schedule in plans if name in (None, schedule.name)]
    if name is not None and not found:
        known = ", ".join(dict.fromkeys(schedule.name for _, schedule in plans))
        raise ConfigError(f"no schedule named {name!r}; configured: {known or 'none'}")
    return found


def _leads(config: Config, store: Store) -> Callable[[str, Schedule], float]:
    """Return a function that finds how long before its opening a schedule begins."""

    @cache
    def usual(gpu: str) -> float:
        return usual_lead(store.events(gpu, HISTORY), config.gpu[gpu].boot_estimate)

    return lambda gpu, schedule: usual(gpu) if schedule.lead is None else schedule.lead


def list_(gpu: str | None, count: int, json: bool, config: str | None) -> None:
    loaded = load(config)
    plans = list(_plans(loaded, gpu))
    if not plans and not json:
        print("no schedules; `qwenctl prewarm add --help` shows how to add one")
        return
    rows = []
    if plans:
        store = open_store(loaded)
        lead_of = _leads(loaded, store)
        snapshots = {name: store.snapshot(name) for name in dict.fromkeys(at for at, _ in plans)}
        for at, schedule in plans:
            price = loaded.gpu[at].price_per_hour
            lead = lead_of(at, schedule)
            rows.append(_row(at, schedule, snapshots[at], lead, count, price))
    if json:
        print_json({"schedules": rows})
        return
    print("\n\n".join("\n".join(_row_lines(row)) for row in rows))


def _row(
    gpu: str, schedule: Schedule, snapshot: Snapshot, lead: float, count: int, price: float
) -> dict[str, Any]:
    now = snapshot.now
    present = schedule.window(now, lead)

    def about(window: Window) -> dict[str, Any]:
        hours = (window.ends - window.starts) / 3600
        return {
            "opens": window.opens,
            "ends": window.ends,
            "starts": window.starts,
            "local": {
                key: schedule.at(getattr(window, key)).isoformat(timespec="seconds")
                for key in ("opens", "ends", "starts")
            },
            "cost": round(hours * price, 2) if price and schedule.kind == PREWARM else None,
        }

    return {
        "gpu": gpu,
        "name": schedule.name,
        "kind": schedule.kind,
        "cron": schedule.cron.text,
        "timezone": str(schedule.zone),
        "duration_seconds": schedule.duration,
        "lead_seconds": round(lead, 1),
        "lead_auto": schedule.lead is None,
        "now": about(present) if present else None,
        "given_up": bool(present and snapshot.given_up(schedule.lease, present.opens)),
        "next": [about(window) for window in schedule.upcoming(now, count, lead)],
    }


def _row_lines(row: dict[str, Any]) -> Iterator[str]:
    from datetime import datetime

    prewarm = row["kind"] == PREWARM
    what = "ready" if prewarm else "off"
    head = f"{row['gpu']}: {paint(row['name'], bold=True)} keeps it {what} for "
    head += f"{duration(row['duration_seconds'])} at {row['cron']} ({row['timezone']})"
    if prewarm:
        usual = ", as long as starts usually take" if row["lead_auto"] else ""
        head += f", started {duration(row['lead_seconds'])} before{usual}"
    yield head
    lines = [("now ", row["now"])] if row["now"] else []
    for label, window in lines + [
        ("next" if i == 0 else "    ", w) for i, w in enumerate(row["next"])
    ]:
        opens, ends, starts = (
            datetime.fromisoformat(window["local"][key]) for key in ("opens", "ends", "starts")
        )
        form = "%H:%M" if ends.date() == opens.date() else "%a %Y-%m-%d %H:%M"
        text = f"  {label}  {opens:%a %Y-%m-%d %H:%M} to {ends:{form}}"
        if prewarm:
            text += f", starts {starts:%H:%M:%S}"
        if window["cost"] is not None:
            text += f", about {window['cost']:.2f}"
        if label == "now " and row["given_up"]:
            by = "down" if prewarm else "unblock"
            text += f"; given up by `qwenctl {by}` until the next one"
        yield text
    if not row["next"]:
        yield "  it never opens again"


def run(
    name: str | None,
    gpu: str | None,
    lead: float | None,
    dry_run: bool,
    json: bool,
    config: str | None,
) -> None:
    heed_interrupt()
    loaded = load(config)
    plans = _named(loaded, gpu, name)
    store = open_store(loaded) if plans else None
    done = [] if store is None else list(_run(loaded, store, plans, lead, dry_run=dry_run))
    if json:
        print_json({"dry_run": dry_run, "windows": done})
    elif dry_run:
        for entry in done:
            print(f"would hold {entry['lease']} on {entry['gpu']} until {entry['until']}")
        if not done:
            print("nothing is due")
    if store is None or dry_run:
        return

    problems: list[UserError] = []
    for at in dict.fromkeys(e["gpu"] for e in done if e["outcome"] in ("new", "held")):
        try:
            with follow(Target(loaded, at, store), store.snapshot(at)) as progress:
                progress.hand_over()
        except UserError as error:  # the other GPUs are started all the same
            problems.append(error)
    for problem in problems[1:]:
        warn(str(problem))
    if problems:
        raise problems[0]


def _run(
    config: Config,
    store: Store,
    plans: list[tuple[str, Schedule]],
    lead: float | None,
    *,
    dry_run: bool,
) -> Iterator[dict[str, Any]]:
    """Hold the leases and blocks that are due; yield an entry for each."""
    lead_of = _leads(config, store)
    for gpu, schedule in plans:
        before = lead_of(gpu, schedule)
        if lead is not None and schedule.kind == PREWARM:
            before = lead
        snapshot = store.snapshot(gpu)
        window = schedule.window(snapshot.now, before + EARLY_SECONDS)
        if window is None:
            continue
        if dry_run:
            if snapshot.given_up(schedule.lease, window.opens):
                continue
            outcome = "due"
        else:
            outcome = write(store, gpu, of_schedule(schedule, window))
        yield {
            "gpu": gpu,
            "name": schedule.name,
            "kind": schedule.kind,
            "lease": schedule.lease,
            "outcome": outcome,
            "until": schedule.at(window.ends).isoformat(timespec="seconds"),
        }


def add(
    name: str,
    cron: str,
    for_: str,
    timezone: str,
    lead: str,
    exceptions: list[str] | None,
    off_hours: bool,
    gpu: str | None,
    dry_run: bool,
    json: bool,
    config: str | None,
) -> None:
    loaded, path = _with_file(config)
    at = loaded.gpu_name(gpu)
    if off_hours and lead:
        raise typer.BadParameter("off-hours begin when they begin", param_hint="--lead")
    values = {
        "name": name,
        "cron": cron,
        # Written into the file, it is the same on every machine that reads it.
        "timezone": timezone or _zone_name(),
        "duration": for_,
        **({"lead": lead} if lead else {}),
        **({"exceptions": exceptions} if exceptions else {}),
    }
    place = ("gpu", at, "off_hours" if off_hours else "prewarm")
    shown = with_table("", place, values).rstrip()

    def change(text: str) -> str:
        return with_table(text, place, values)

    _put(path, change, f"added {name} to", shown, dry_run=dry_run, json=json, about=(at, name))


def _zone_name() -> str:
    """Return the name of this machine's time zone.

    Raises:
        ConfigError: it cannot be found out.
    """
    from zoneinfo import ZoneInfo

    try:
        return str(ZoneInfo(str(machine_zone())))
    except (ConfigError, ValueError, KeyError, OSError):
        raise ConfigError(
            "the name of this machine's time zone cannot be told; use --timezone, such as "
            "--timezone Europe/Berlin"
        ) from None


def remove(name: str, gpu: str | None, dry_run: bool, json: bool, config: str | None) -> None:
    loaded, path = _with_file(config)
    at = loaded.gpu_name(gpu)

    def change(text: str) -> str:
        for key in ("prewarm", "off_hours"):
            names = names_in(text, place := ("gpu", at, key))
            if name in names:
                return without_table(text, place, names.index(name))
        _named(loaded, at, name)  # raises, with the known names, if no schedule has this name
        raise ConfigError(
            f"the schedule {name!r} is not in {path}: it comes from a QWENCTL_GPU__* variable of "
            "the environment; remove it there"
        )

    _put(path, change, f"removed {name} from", "", dry_run=dry_run, json=json, about=(at, name))


def _with_file(given: str | None) -> tuple[Config, Path]:
    loaded = load(given)
    if not loaded.source:
        raise ConfigError("no config file; `qwenctl init` writes one")
    return loaded, Path(loaded.source)


def _put(
    path: Path,
    change: Callable[[str], str],
    verb: str,
    shown: str,
    *,
    dry_run: bool,
    json: bool,
    about: tuple[str, str],
) -> None:
    if dry_run:
        check(path, change(read_text(path)))
    else:
        edit(path, change)
    if json:
        print_json({"gpu": about[0], "name": about[1], "file": str(path), "dry_run": dry_run})
        return
    if dry_run:
        print(f"would have {verb} {path}" + (f":\n{shown}" if shown else ""))
        return
    print(f"{verb} {path}; a proxy that runs must be started anew to know it")


MOST_TIMES = 6
"""Most lines that `crontab` writes for a schedule; instead of more, one line runs often."""


def crontab(name: str | None, gpu: str | None, json: bool, config: str | None) -> None:
    loaded = load(config)
    plans = _named(loaded, gpu, name)
    found: list[dict[str, object]] = []
    lines = list(_crontab(loaded, plans, found)) if plans else []
    if json:
        print_json({"schedules": found})
    else:
        print(*lines, sep="\n", end="\n" if lines else "")


def _crontab(
    loaded: Config, plans: list[tuple[str, Schedule]], found: list[dict[str, object]]
) -> Iterator[str]:
    """Yield the lines; append each schedule with its own to ``found``."""
    store = open_store(loaded)
    lead_of = _leads(loaded, store)
    zone = machine_zone()
    yield f"# qwenctl schedules; times of {zone}. Printed anew by `qwenctl prewarm crontab`."
    for at, schedule in plans:
        # Whole minutes, as cron has. The line contains the lead, since the usual lead changes.
        lead = -(-lead_of(at, schedule) // 60) * 60
        now = store.snapshot(at).now
        about = f"{schedule.cron.text} {schedule.zone}"
        if schedule.kind == PREWARM:
            about += f", started {duration(lead)} before"
        yield f"# {at}: {schedule.lease}: {about}"
        fields = _cron_fields(schedule, now, lead, zone)
        if fields is None:
            fields, lead = ["*/5 * * * *"], lead + 300.0
        lines = [f"{text} {_command(loaded, at, schedule, lead)}" for text in fields]
        found.append({"gpu": at, "schedule": schedule.name, "lines": lines})
        yield from lines or ["# it never opens again"]


def _cron_fields(schedule: Schedule, now: float, lead: float, zone: Any) -> list[str] | None:
    """Return the five fields of each line needed within a year, or None if too many."""
    from datetime import datetime, timezone

    day = 86400.0
    if len(schedule.openings(now, now + 8 * day)) > 8 * MOST_TIMES:
        return None
    days: dict[tuple[int, int], set[int]] = {}
    openings = schedule.openings(now, now + 366 * day)
    for opening in openings or [w.opens for w in schedule.upcoming(now, 1, lead)]:
        at = datetime.fromtimestamp(opening - lead, timezone.utc).astimezone(zone)
        days.setdefault((at.hour, at.minute), set()).add(at.isoweekday() % 7)
    if len(days) > MOST_TIMES:
        return None
    return [
        f"{minute} {hour} * * {','.join(map(str, sorted(week))) if len(week) < 7 else '*'}"
        for (hour, minute), week in sorted(days.items())
    ]


def _command(config: Config, gpu: str, schedule: Schedule, lead: float) -> str:
    """Return the command for a crontab.

    Cron has a short PATH, runs in the home directory, and reads % as a line end (crontab(5)).
    """
    import shlex
    import shutil

    program = shutil.which(sys.argv[0]) or shutil.which("qwenctl") or "qwenctl"
    words = [str(Path(program).absolute())]
    if config.source:
        words += ["--config", config.source]
    words += ["prewarm", "run", schedule.name, "--gpu", gpu]
    if schedule.kind == PREWARM:
        words += ["--lead", f"{lead:.0f}s"]
    return shlex.join(words).replace("%", "\\%")
