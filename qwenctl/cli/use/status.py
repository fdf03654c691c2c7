"""`qwenctl status`, `why`, `events` and `logs`: read-only commands."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qwenctl.cli.common.context import Target, heed_interrupt, load, open_store, print_json
from qwenctl.cli.common.language import padded, said
from qwenctl.cli.common.terminal import clock, live, paint, phase_style, shorten, stamp
from qwenctl.cli.use.gpu_stats import figure_lines
from qwenctl.cli.use.overview import PIPE_WIDTH, fit, overview, wrapped
from qwenctl.config.deployment import Config
from qwenctl.control.left_on import with_removed
from qwenctl.core import failures
from qwenctl.core.events import Event, EventKind
from qwenctl.core.explain import Reason, explain
from qwenctl.core.leases import WORK
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY, full_status, own_record
from qwenctl.core.words import (
    NOT_ASKED,
    OFF_BILLS,
    ONE_CONFIGURATION,
    cause_words,
    event_cause,
    name_words,
    overdue_words,
)
from qwenctl.lib.text import (
    countdown,
    duration,
    escape_all,
    escape_control,
    eta,
    log_line,
    one_line,
    raw,
    time_left,
)
from qwenctl.store import embedded
from qwenctl.store.store import Store

FOLLOW_SECONDS = 2.0
"""Seconds of a blocking read of the stream; less than the client's socket timeout."""


def status(gpu: str | None, watch: bool, json: bool, config: str | None) -> None:
    loaded, store, names, removed = _opened(gpu, config)
    if not watch:
        data = _read(loaded, store, names, removed)
        if json:
            print_json(data)
        else:
            print("\n".join(_page(escape_all(data), brief=_brief(gpu, names))))
        return
    heed_interrupt()
    changed = threading.Event()
    changed.set()
    watcher = store.watch(names, lambda *_: changed.set())

    def read() -> dict[str, Any]:
        return _read(loaded, store, names, removed)

    try:
        if json or not live(sys.stdout):
            _watch_lines(read, changed, json=json)
        else:
            _watch_live(read, changed, brief=_brief(gpu, names))
    finally:
        watcher.stop()


def _brief(gpu: str | None, names: Sequence[str]) -> bool:
    """Return whether each GPU gets a line only."""
    return gpu is None and len(names) > 1


def _page(data: Mapping[str, Any], *, brief: bool) -> list[str]:
    """Return the lines to print, as wide as the terminal."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else PIPE_WIDTH
    if brief:
        hint = "`qwenctl status NAME` says more of one"
        more = ["", paint(said(hint), dim=True)] if on_terminal else []
        return [*overview(data["gpus"], width), *more]
    lines = _status_text(data).splitlines()
    wide = on_terminal and any(len(line) > width for line in lines)
    return wrapped(lines, width) if wide else lines


def _read(config: Config, store: Store, names: list[str], removed: set[str]) -> dict[str, Any]:
    gpus = {
        name: {
            **full_status(
                store.snapshot(name),
                store.events(name, HISTORY),
                config.gpu[name],
                url=config.url_of(name),
            ),
            "billed_while_off": OFF_BILLS[config.gpu[name].settings.off_bill],
            "way": config.way_to(name),
            "removed": name in removed,
            # Nobody is sent to it, and its port is not remembered.
            **({"url": "", "node_url": ""} if name in removed else {}),
        }
        for name in names
    }
    return {"deployment": config.deployment, "url": config.url, "gpus": gpus}


def _watch_lines(
    read: Callable[[], dict[str, Any]], changed: threading.Event, *, json: bool
) -> None:
    """Print a line for each change: JSON, or the first line of the status."""
    last = ""
    while True:
        changed.wait()
        changed.clear()
        data = read() if json else escape_all(read())
        key = repr(
            [
                (
                    g["phase"],
                    g["since"],
                    g["cloud"]["state"] is None,
                    g["failure"],
                    g["blocked"],
                    [x["name"] for x in g["leases"]],
                )
                for g in data["gpus"].values()
            ]
        )
        if key == last:
            continue
        last = key
        if json:
            print_json(data, compact=True)
        else:
            for state in data["gpus"].values():
                print(f"{stamp(state['now'])}  {_headline(state)}", flush=True)


def _watch_live(
    read: Callable[[], dict[str, Any]], changed: threading.Event, *, brief: bool
) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=raw(sys.stdout))
    with Live(console=console, auto_refresh=False, screen=False) as screen:
        while True:
            text = "\n".join(fit(_page(escape_all(read()), brief=brief)))
            screen.update(Text.from_ansi(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            changed.wait(timeout=1.0)  # the seconds on the screen pass without a change
            changed.clear()


def _status_text(data: Mapping[str, Any]) -> str:
    blocks = ["\n".join(_gpu_lines(state)) for state in data["gpus"].values()]
    return "\n\n".join(blocks)


def _headline(state: Mapping[str, Any]) -> str:
    return _painted(state["gpu"], state["phase"], _english_headline(state))


def _painted(gpu: str, phase: str, english: str) -> str:
    """Return a first line in the user's language, with the colours that a translation loses."""
    text = said(english)
    if text == english:
        return english
    coloured = text.replace(gpu, paint(gpu, bold=True), 1)
    word = said(phase)
    return coloured.replace(word, paint(word, phase_style(phase), bold=True), 1)


def _english_headline(state: Mapping[str, Any]) -> str:
    phase = Phase(state["phase"])
    failed = phase is Phase.FAILED
    if phase is Phase.OFF and state["cloud"]["state"] is None:
        return f"{paint(state['gpu'], bold=True)}'s state is {NOT_ASKED}"
    text = paint(phase.value, phase_style(phase.value), bold=True)
    text = f"{paint(state['gpu'], bold=True)} {'' if failed else 'is '}{text}"
    if state["since"]:
        ago = duration(state["now"] - state["since"])
        text += f" {ago} ago" if failed else f" for {ago}"
        if state["cause_text"]:
            text += paint(f": {state['cause_text']}", dim=True)
    if state["as_of"] is not None:
        ago = duration(state["now"] - state["as_of"])
        text += f" (as of {ago} ago, not verified: no proxy runs)"
    if state["eta_seconds"] is not None and phase is Phase.OFF:
        text += f", ready about {time_left(state['eta_seconds'])} after its start"
    elif state["eta_seconds"] is not None and phase not in (Phase.READY, Phase.DRAINING):
        text += f", {eta(state['eta_seconds'])}"
    return text


def _gpu_lines(state: Mapping[str, Any]) -> Iterator[str]:
    def row(label: str, text: str, colour: str | None = None) -> str:
        text = said(text)
        return f"  {paint(padded(label, 11), dim=True)}{paint(text, colour) if colour else text}"

    yield _headline(state)
    if state.get("removed"):
        yield row("removed", f"{REMOVED}; {_who_stops(state['gpu'])}", "red")
    if Phase(state["phase"]).serves and not state.get("removed"):
        way = f"  ({state['way']})" if state.get("way") else ""
        alone = f"{state['node_url']} (the node's own address: no proxy runs)"
        yield row("open", state["url"] + way if state["leader"] else alone)
    for block in state["blocks"]:
        left = block["seconds_left"]
        until = "until unblocked" if left is None else f"for another {time_left(left)}"
        yield row("blocked", f"by {block['text']}, {until}", "red")
    if state["schedule_trouble"]:
        yield row("schedule", f"not known: {state['schedule_trouble']}", "red")
    if failure := state["failure"]:
        again = failure["retry_in_seconds"]
        text = f"{cause_words(failure['code'])}: {failure['message']}"
        text += f" (attempt {failure['attempts']}"
        yield row(
            "failure", text + (f", next {countdown(again)})" if again is not None else ")"), "red"
        )
    if problem := state["stop_problem"]:
        lasted = ""
        if problem["since"] is not None:
            lasted = f" (for {duration(state['now'] - problem['since'])})"
        yield row("still on", problem["text"] + lasted, "red")
    if Phase(state["phase"]).waking:
        yield row("steps", _steps_line(state["steps"]))
    if progress := state["progress"]:
        percent = "" if progress["percent"] is None else f" {progress['percent']:.0f} %"
        yield row("progress", f"{progress['phase']}{percent} {progress['text']}".strip())
    for index, lease in enumerate(state["leases"]):
        left = "" if lease["kind"] in WORK else f", {time_left(lease['seconds_left'])} left"
        yield row("used by" if index == 0 else "", lease["text"] + left)
    if state["idle_seconds_left"] is not None:
        text = f"goes off {countdown(state['idle_seconds_left'])} unless it is used"
        yield row("idle", text if state["verified"] else "nobody stops it: no proxy runs")
    yield from (row("node" if i == 0 else "", text) for i, text in enumerate(_node_lines(state)))
    if problem := state["port_problem"]:
        yield row("", f"{problem}: {ONE_CONFIGURATION}", "red")
    if late := state.get("overdue"):
        yield row("agent", overdue_words(late["seconds"], " ".join(late["urls"])), "red")
    if skew := state["version_problem"]:
        yield row("versions", f"{skew['text']}; to upgrade, {skew['upgrade']}", "red")
    if refused := state["agent_refused"]:
        yield row("agent", f"{refused['text']}. {refused['advice']}", "red")
    yield row("cloud", _cloud_line(state))
    if state["cloud"]["note"]:
        yield row("", one_line(state["cloud"]["note"]))
    off = state["phase"] == Phase.OFF.value and state["cloud"]["state"] is not None
    if off and (bill := state.get("billed_while_off")):
        yield row("billed", bill)
    if wake := state["last_wake"]:
        yield row("last wake", _wake_line(wake))
    yield row("controller", state["leader"] or "none: `qwenctl serve` runs one")
    if state["price_per_hour"]:
        price = f"{state['price_per_hour']:g} an hour while on"
        if state["cost_so_far"] is not None:
            price += f", {state['cost_so_far']:.2f} since it booted"
        yield row("price", price)


REMOVED = "the settings no longer have this GPU, and its instance may be on"


def _who_stops(gpu: str) -> str:
    return f"`qwenctl serve` stops it, and so does `qwenctl down --gpu {gpu}`"


def _steps_line(steps: list[dict[str, Any]]) -> str:
    marks = {"done": "✓", "active": "…", "todo": "·", "failed": "✗"}
    return "  ".join(
        f"{marks[step['state']]} {said(step['key'])}"
        + (f" {said(duration(step['seconds']))}" if step["seconds"] is not None else "")
        for step in steps
    )


def _node_lines(state: Mapping[str, Any]) -> Iterator[str]:
    node = state["node"]
    if not node:
        return
    text = one_line(f"agent {node['version']}") if state["agent"] else "no agent"
    if state["agent"] and node["proxy_version"] not in ("", node["version"]):
        text += f" (the proxy is {one_line(node['proxy_version'])})"
    if node["heartbeat_age_seconds"] is not None:
        verb = "heard of" if state["agent"] else "its service asked"
        text += f", {verb} {duration(node['heartbeat_age_seconds'])} ago"
    if node["active"]:
        text += f", {node['active']} generation{'s' if node['active'] != 1 else ''} running"
    said = {one_line(state["failure"]["message"])} if state["failure"] else set()

    def new(error: str) -> str:
        """Return the error's first line, or nothing if it was printed for another part."""
        first = one_line((error.splitlines() or [""])[0])
        if any(first in before for before in said):
            return ""
        said.add(first)
        return one_line(error)

    error = new(node["error"])
    yield text + (f", {error}" if error else "")
    for service in node["services"]:
        restarts = f", restarted {service['restarts']} ×" if service["restarts"] else ""
        error = new(service["error"])
        error = f": {shorten(error)}" if error else ""
        yield f"{service['name']} {service['state']} on port {service['port']}{restarts}{error}"
        for text in (service["detail"], service["doubt"]):
            if text:
                yield f"  {one_line(text)}"
    yield from figure_lines(node["resources"] or {})


def _cloud_line(state: Mapping[str, Any]) -> str:
    cloud = state["cloud"]
    if cloud["called"] and not cloud["error"]:
        return f"{state['provider']} has accepted the {cloud['called']} call, not asked since"
    if cloud["refused"] and cloud["refused"] == cloud["error"]:
        verb = "start" if state["phase"] == Phase.STARTING.value else "stop"
        return paint(f"has not accepted the {verb} call: {one_line(cloud['refused'])}", "red")
    if cloud["code"] == failures.CLAIMED:
        return paint(one_line(cloud["error"]), "red")
    if cloud["error"]:
        return paint(f"cannot be asked: {one_line(cloud['error'])}", "red")
    if cloud["state"] is None:
        other = f" (on record is another instance: {cloud['other']})" if cloud["other"] else ""
        return f"{state['provider']}, not asked yet{other}"
    text = f"{state['provider']} says {cloud['state']}"
    if cloud["instance_id"]:
        text += f", instance {cloud['instance_id']}"
    if state["address"] and cloud["state"] == "running":
        text += f" at {state['address']}"
    return text + f", asked {duration(cloud['age_seconds'])} ago"


def _wake_line(wake: Mapping[str, Any]) -> str:
    if wake["outcome"] == "ready":
        text = f"ready after {duration(wake['seconds'])}"
    else:
        text = wake["outcome"].replace("_", " ")
        text += f" ({cause_words(wake['code'])})" if wake["code"] else ""
    steps = ", ".join(
        f"{said('first answer' if name == 'first_byte' else name)} {said(duration(s))}"
        for name, s in wake["durations"].items()
    )
    return f"{text}{': ' if steps else ''}{steps}"


def why(gpu: str | None, json: bool, config: str | None) -> None:
    loaded, store, names, removed = _opened(gpu, config)
    told = {}
    for index, name in enumerate(names):
        snapshot = store.snapshot(name)
        events: Sequence[Event] = store.events(name, HISTORY)
        snapshot, events, _ = own_record(snapshot, events, loaded.gpu[name])
        timing = loaded.gpu[name].timing
        reasons = explain(
            snapshot,
            events,
            snapshot.now,
            drain=timing.drain,
            dead_man=timing.dead_man,
            port=loaded.gpu[name].port,
        )
        if name in removed:
            text = f"{REMOVED}; {_who_stops(name)}"
            reasons.insert(-1, Reason("off", text))
        if json:
            told[name] = {
                "gpu": name,
                "phase": snapshot.phase.value,
                "now": snapshot.now,
                "verified": bool(snapshot.leader),
                "reasons": [vars(reason) for reason in reasons],
            }
        else:
            print("\n" * (index > 0) + "\n".join(_reason_lines(snapshot, reasons)))
    if json:
        print_json(told[names[0]] if len(names) == 1 else {"gpus": told})


def _opened(gpu: str | None, given: str | None) -> tuple[Config, Store, list[str], set[str]]:
    """Return configuration, store, the named GPU or all, and those that the settings no longer have."""
    config = load(given)
    if not config.gpu and not (config.redis_url or embedded.has_data(config.state_path)):
        config.gpu_name(gpu)  # raises; an embedded server need not start for it
    store = open_store(config)
    known = with_removed(config, store)
    if not known.gpu:
        known.gpu_name(gpu)  # raises
    names = [known.gpu_name(gpu)] if gpu else list(known.gpu)
    return known, store, names, set(known.gpu) - set(config.gpu)


def _reason_lines(snapshot: Snapshot, reasons: list[Reason]) -> Iterator[str]:
    first, *rest = [replace(one, text=escape_control(one.text)) for one in reasons]
    phase = snapshot.phase.value
    text = first.text.replace(phase, paint(phase, phase_style(phase), bold=True), 1)
    verb = (
        "'s state is " if text == NOT_ASKED else " " if snapshot.phase is Phase.FAILED else " is "
    )
    yield _painted(snapshot.gpu, phase, f"{paint(snapshot.gpu, bold=True)}{verb}{text}")
    for reason in rest:
        times = []
        if reason.since is not None and reason.topic != "state":
            times.append(
                said(f"since {clock(reason.since, snapshot.now)}")
                if reason.topic in ("on", "off")
                else clock(reason.since, snapshot.now)
            )
        if reason.until is not None:
            times.append(
                said(f"until {clock(reason.until, snapshot.now)}")
                if reason.topic in ("on", "off")
                else clock(reason.until, snapshot.now)
            )
        suffix = paint(f"  ({', '.join(times)})", dim=True) if times else ""
        mark = paint("→" if reason.topic == "next" else "•", dim=True)
        red = reason.topic in ("failure", "cloud", "schedule")
        body = paint(said(reason.text), "red") if red else said(reason.text)
        yield f"  {mark} {body}{suffix}"


def events(gpu: str | None, count: int, follow: bool, json: bool, config: str | None) -> None:
    if follow:
        heed_interrupt()
    _, store, names, _ = _opened(gpu, config)
    width = max(map(len, names)) if len(names) > 1 else 0

    def show(found: dict[str, list[Event]], most: int | None = None) -> None:
        rows = [(event.time, name, event) for name in names for event in found[name]]
        rows.sort(key=lambda row: row[0])  # stable: events of a GPU keep their order
        for _, name, event in rows[-most:] if most else rows:
            _print_event(event, name, json, width)
        for name in names:
            if found[name]:
                last[name] = found[name][-1].id

    last = dict.fromkeys(names, "")
    show({name: store.events(name, count) for name in names}, count)
    while follow:
        pause = FOLLOW_SECONDS / len(names)
        show({name: store.follow(name, last[name], pause) for name in names})


def _print_event(event: Event, gpu: str, as_json: bool, width: int) -> None:
    """Print an event; ``width``: of the column with the GPU's name, 0 for no column."""
    if as_json:
        about = {"id": event.id, "time": event.time, "kind": event.kind, "gpu": gpu}
        print_json({**event.fields, **about}, compact=True)
    else:
        time = paint(stamp(event.time), dim=True)
        column = f"{paint(f'{gpu:<{width}}', bold=True)}  " if width else ""
        print(f"{time}  {column}{event_words(event)}", flush=True)


def event_words(event: Event) -> str:
    """Describe an event, with colours for the terminal."""
    # A failure is JSON, whose message is escaped where it is shown.
    fields = {k: v if k == "failure" else escape_control(v) for k, v in event.fields.items()}
    event = replace(event, fields=fields)
    kind, actor, cause = event.kind, event.actor, one_line(event.cause)
    why = f": {cause}" if cause else ""
    if kind is EventKind.TRANSITION and event.source and event.to:
        to = paint(event.to.value, phase_style(event.to.value), bold=True)
        return f"{event.source.value} → {to}  {event_cause(event)}"
    if kind is EventKind.CALL:
        result = paint(f"failed: {one_line(event.error)}", "red") if event.error else "accepted"
        request = f" (request {event.request_id})" if event.request_id else ""
        note = f"; {one_line(event.note)}" if event.note else ""
        return f"{event.verb} call {result}{request}{note}"
    if kind is EventKind.LEASE:
        return f"needed by {name_words(event.name, actor, cause)}"
    if kind in (EventKind.BLOCK, EventKind.UNBLOCK):
        return f"{kind}ed" + (f" by {actor}" if actor else "") + why
    if kind is EventKind.DOWN:
        return f"down{' --now' if event.force_stop else ''} by {actor}{why}"
    if kind is EventKind.NODE:
        parts = (event.state, event.progress, one_line(event.error))
        return f"node: {', '.join(part for part in parts if part)}"
    if kind is EventKind.HELLO:
        return f"node: hello, boot {event.boot_id}"
    if kind is EventKind.INTERRUPTION:
        return f"node: the cloud takes the instance back ({event.action})"
    if kind is EventKind.OVERDUE:
        return f"node: {one_line(event.error)}"
    if kind is EventKind.CLOCK:
        return f"Redis's clock stepped by {_step_seconds(event):+.1f} s; all times were moved along"
    if kind is EventKind.FIRST_BYTE:
        return "first answer to a visitor"
    rest = " ".join(f"{key}={value}" for key, value in event.fields.items())
    return escape_control(f"{kind} {rest}".strip())


def _step_seconds(event: Event) -> float:
    with contextlib.suppress(ValueError):
        return float(event.fields.get("step", "")) / 1000
    return 0.0


def logs(gpu: str | None, count: int, follow: bool, json: bool, config: str | None) -> None:
    if follow:
        heed_interrupt()
    target = Target.find(gpu, config, removed=True)

    def show(lines: list[str]) -> None:
        for line in lines:
            if json:
                print_json({"line": line}, compact=True)
            else:
                print(log_line(line), flush=follow)

    if not follow:
        lines = target.store.log_lines(target.name, count)
        show(lines)
        if not lines and not json:
            print(_why_no_lines(target), file=sys.stderr)
        return
    changed = threading.Event()
    watcher = target.store.watch([target.name], lambda *_: changed.set())
    try:
        before = target.store.log_lines(target.name, 2000)
        show(before[-count:])
        while True:
            changed.wait()
            changed.clear()
            lines = target.store.log_lines(target.name, 2000)
            show(lines[_overlap(before, lines) :])
            before = lines
    finally:
        watcher.stop()


def _why_no_lines(target: Target) -> str:
    snapshot = target.store.snapshot(target.name)
    if not target.gpu.agent:
        return f"no log lines: {target.name} has no agent (agent = false) to send them"
    if not snapshot.leader:
        return "no log lines: no proxy runs that the node could send them to (`qwenctl serve`)"
    if snapshot.phase in (Phase.OFF, Phase.STARTING, Phase.BOOTING):
        return "no log lines yet: the node sends them once its agent runs"
    if snapshot.phase is Phase.FAILED and not snapshot.node_view.hello:
        return "no log lines: its agent has not been heard of; `qwenctl why` says what failed"
    return "no log lines: the service has written nothing"


def _overlap(before: list[str], lines: list[str]) -> int:
    """Count the first lines that were there before; the list loses its oldest lines."""
    for start in range(max(0, len(before) - len(lines)), len(before)):
        if before[start:] == lines[: len(before) - start]:
            return len(before) - start
    return 0
