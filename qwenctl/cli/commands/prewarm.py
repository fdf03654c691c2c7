"""`qwenctl prewarm`."""

from __future__ import annotations

from typing import Annotated

import typer

from qwenctl.cli.common.context import (
    ConfigOption,
    DryRunOption,
    GpuOption,
    JsonOption,
    duration_option,
    schedule_names,
)

app = typer.Typer(no_args_is_help=True, help="Keep a GPU ready, or off, by schedule.")

NameArgument = Annotated[
    str, typer.Argument(help="Name of the schedule.", autocompletion=schedule_names)
]

SomeNameArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of the schedule; default: all.",
        show_default=False,
        autocompletion=schedule_names,
    ),
]


@app.command("list")
def list_(
    gpu: GpuOption = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=100, help="How many windows of each.")
    ] = 3,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show the schedules with their next windows, and what they cost.

    Times are local ones of the schedule's time zone. The cost counts the lead
    and the whole window, at `price_per_hour`.

    \b
    Examples:
      qwenctl prewarm list
      qwenctl prewarm list -n 10 --json
    """
    from qwenctl.cli.use import prewarm as body

    body.list_(gpu, count, json, config)


@app.command()
def run(
    name: SomeNameArgument = None,
    gpu: GpuOption = None,
    lead: Annotated[
        float | None,
        duration_option("--lead", help="Begin this long before; default: as configured."),
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Do what the schedules want now, for cron; silent unless something is wrong.

    The proxy does the same by itself: this is for machines without one, or to
    be safe. It may run at any time, twice at once, and as often as you like:
    it looks which windows are open now and holds their lease, or block, until
    they end. What somebody gave up by `qwenctl down` or `unblock` stays given up
    until the next window. Where no proxy runs, it starts the instance, too.

    \b
    Examples:
      qwenctl prewarm run
      qwenctl prewarm run morning --gpu main
      */5 * * * *  qwenctl prewarm run        (in a crontab)

    \b
    Exit codes: 0 done or nothing to do, 2 no such schedule, 3 no capacity, 4 denied,
    5 the call was not made within a minute, 6 failed to come up, 8 Redis unreachable.
    """
    from qwenctl.cli.use import prewarm as body

    body.run(name, gpu, lead, dry_run, json, config)


@app.command()
def add(
    name: NameArgument,
    cron: Annotated[
        str, typer.Option("--cron", metavar="CRON", help='When, such as "0 9 * * mon-fri".')
    ],
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long each time.")],
    timezone: Annotated[
        str, typer.Option("--timezone", metavar="ZONE", help="Default: this machine's.")
    ] = "",
    lead: Annotated[
        str,
        typer.Option(
            "--lead", metavar="DURATION", help="Start this long before; default: as starts took."
        ),
    ] = "",
    exceptions: Annotated[
        list[str] | None,
        typer.Option(
            "--except", metavar="DATE|FILE", help="A date, or an .ics file; may be given often."
        ),
    ] = None,
    off_hours: Annotated[
        bool, typer.Option("--off-hours", help="Keep it off in that time, not ready.")
    ] = False,
    gpu: GpuOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Add a schedule to the config file; all else in it stays as it is.

    A running proxy knows of it after its next start.

    \b
    Examples:
      qwenctl prewarm add morning --cron "0 9 * * mon-fri" --for 3h
      qwenctl prewarm add night --off-hours --cron "0 20 * * *" --for 11h --except 2026-12-31
    """
    from qwenctl.cli.use import prewarm as body

    body.add(name, cron, for_, timezone, lead, exceptions, off_hours, gpu, dry_run, json, config)


@app.command()
def remove(
    name: NameArgument,
    gpu: GpuOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove a schedule from the config file; all else in it stays as it is.

    A window that is open now lasts until its end, unless `qwenctl down` (or
    `unblock`) ends it before. A running proxy knows of it after its next start.

    \b
    Example:
      qwenctl prewarm remove morning
    """
    from qwenctl.cli.use import prewarm as body

    body.remove(name, gpu, dry_run, json, config)


@app.command()
def crontab(
    name: SomeNameArgument = None,
    gpu: GpuOption = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print crontab lines that do without a proxy what the schedules say.

    Times are those of this machine, also where a schedule has another time
    zone: each time of day at which it begins within a year gets a line, and a
    line that comes when nothing is due does nothing. No CRON_TZ is used, which
    Debian's cron and busybox do not know.

    \b
    Examples:
      qwenctl prewarm crontab
      (crontab -l; qwenctl prewarm crontab) | crontab -
    """
    from qwenctl.cli.use import prewarm as body

    body.crontab(name, gpu, json, config)
