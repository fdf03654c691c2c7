"""`qwenctl down`, `block` and `unblock`.

They drop leases and write blocks; a controller stops. Progress goes to stderr, the result to stdout.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import cast

import typer

from qwenctl.cli.common.context import Target, heed_interrupt, print_json, some_time, user
from qwenctl.cli.common.language import said
from qwenctl.cli.common.terminal import warn
from qwenctl.cli.use.follow import follow, say
from qwenctl.control.standalone import Progress
from qwenctl.core import failures, leases
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Lease, Snapshot
from qwenctl.core.stops import self_stop, stop_problem
from qwenctl.core.words import OFF_BILLS, lease_words, name_words
from qwenctl.errors import ExitCode, UserError
from qwenctl.lib.text import duration, time_left

_WORDS = {"off": "is off", "already_off": "is off already", "requested": "is going off"}


_DENIED = (failures.CLAIMED, failures.DENIED)


def down(
    gpu: str | None,
    now: bool,
    because: str,
    no_wait: bool,
    timeout: float | None,
    dry_run: bool,
    json: bool,
    config: str | None,
) -> None:
    heed_interrupt()
    target = Target.find(gpu, config, removed=True)
    before = target.store.snapshot(target.name)
    if dry_run:
        _explain_down(before, json, now)
        return
    dropped = target.store.release(target.name, actor=user(), reason=because, force_stop=now)
    outcome = _wait_off(target, before, no_wait=no_wait, timeout=timeout, quiet=json)
    text = _WORDS[outcome]
    if outcome == "already_off" and dropped:
        text += f"; dropped {dropped} demand{'s' if dropped != 1 else ''}"
    _say_result(target, json, outcome, f"{target.name} {text}")
    bill = target.gpu.settings.off_bill
    if outcome == "off" and bill != "here":
        say(f"  while it is off: {OFF_BILLS[bill]}", quiet=json)


def down_all(
    now: bool,
    because: str,
    no_wait: bool,
    timeout: float | None,
    dry_run: bool,
    json: bool,
    config: str | None,
) -> None:
    """Give up every GPU, also those that the settings no longer have, and wait until all are off."""
    heed_interrupt()
    targets = Target.all(config)
    before = {target.name: target.store.snapshot(target.name) for target in targets}
    if dry_run and json:
        print_json({"gpus": {name: _plan(first, now) for name, first in before.items()}})
        return
    if dry_run:
        for first in before.values():
            _explain_down(first, json, now)
        return
    for target in targets:  # at once: none waits for the end of another
        target.store.release(target.name, actor=user(), reason=because, force_stop=now)
    told: dict[str, dict[str, object]] = {}
    broken: list[BaseException] = []
    lock = threading.Lock()

    def wait(target: Target) -> None:
        first = before[target.name]
        try:
            outcome = _wait_off(
                target, first, no_wait=no_wait, timeout=timeout, quiet=json, named=True
            )
            found: dict[str, object] = {"outcome": outcome}
        except UserError as error:
            found = {"outcome": "failed", "error": str(error), "exit_code": int(error.exit_code)}
        except BaseException as error:
            broken.append(error)
            return
        with lock:
            told[target.name] = found
            if not json and "error" not in found:
                print(said(f"{target.name} {_WORDS[str(found['outcome'])]}"), flush=True)

    threads = [threading.Thread(target=wait, args=(one,), daemon=True) for one in targets]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for target in targets:
            if target.name not in told:
                _tell_going(target, alone=not before[target.name].leader)
        raise
    if broken:
        raise broken[0]
    if json:
        print_json({"gpus": {target.name: told[target.name] for target in targets}})
    failed = [found for found in told.values() if "error" in found]
    if failed:
        worst = max(cast(int, found["exit_code"]) for found in failed)
        if json:
            raise typer.Exit(worst)
        raise UserError("\n".join(str(found["error"]) for found in failed), ExitCode(worst))


def _dropped(snapshot: Snapshot, now: bool) -> tuple[list[Lease], list[Lease]]:
    """Return the leases that end at once, and those of running work that is finished first."""
    going = [lease for lease in snapshot.leases if now or not lease.is_work]
    return going, [lease for lease in snapshot.leases if lease not in going]


def _plan(snapshot: Snapshot, now: bool) -> dict[str, object]:
    """Return what would be done, for scripts."""
    going, staying = _dropped(snapshot, now)
    # An instance that is recorded as off may run where no process observes it.
    off = snapshot.phase is Phase.OFF
    return {
        "gpu": snapshot.gpu,
        "dry_run": True,
        "phase": snapshot.phase.value,
        "would_stop": None if off and not snapshot.leader else not off,
        "dropped": [lease.name for lease in going],
        "finished_first": [lease.name for lease in staying],
    }


def _explain_down(snapshot: Snapshot, json: bool, now: bool) -> None:
    if json:
        print_json(_plan(snapshot, now))
        return
    going, staying = _dropped(snapshot, now)
    if snapshot.phase is Phase.OFF:
        if snapshot.leader:
            print(said(f"{snapshot.gpu} is off already"))
        else:
            print(
                said(
                    f"would ask the cloud whether {snapshot.gpu} is off already, and stop it if not"
                )
            )
        return
    print(said(f"would stop {snapshot.gpu}, which is {snapshot.phase.value}"))
    for lease in going:
        print(said(f"  {'cutting' if lease.is_work else 'against'} {lease_words(lease)}"))
    for lease in staying:
        print(said(f"  after {lease_words(lease)} is finished"))


def _wait_off(
    target: Target,
    before: Snapshot,
    *,
    no_wait: bool,
    timeout: float | None,
    quiet: bool,
    named: bool = False,
) -> str:
    """Wait until the GPU is off, or with ``no_wait`` until it goes off.

    ``named``: each line of progress begins with the GPU's name. Return a key of `_WORDS`.
    """
    if no_wait and before.phase is not Phase.OFF:
        _tell_alone(not before.leader)
        return "requested"
    # `down` has precedence over adopting an instance that is found running.
    with follow(target, before, keep_found=False) as progress:
        try:
            return _follow_off(
                target, progress, no_wait=no_wait, timeout=timeout, quiet=quiet, named=named
            )
        except KeyboardInterrupt:
            _tell_going(target, alone=progress.alone)
            raise


def _tell_going(target: Target, *, alone: bool) -> None:
    again = f" once {target.command('down')} or `qwenctl serve` runs again"
    warn(f"\n{target.name} goes on stopping{again if alone else ''}.")


def _tell_alone(alone: bool) -> None:
    if alone:
        warn("No proxy runs, so nobody stops it yet: leave out --no-wait, or run `qwenctl serve`.")


def _follow_off(
    target: Target,
    progress: Progress,
    *,
    no_wait: bool,
    timeout: float | None,
    quiet: bool,
    named: bool,
) -> str:
    last = ""
    deadline = None if timeout is None else time.monotonic() + timeout
    for snapshot in progress.snapshots(every=5.0, deadline=deadline):
        if progress.off(snapshot):
            return "off" if last or progress.first.phase is not Phase.OFF else "already_off"
        if why := progress.stuck(snapshot):
            raise UserError(why)
        _raise_refusal(target, progress, snapshot)
        # Where no process leads, the drain of what was found ends with this one.
        drains = progress.alone and snapshot.phase.running and not snapshot.working
        if no_wait and snapshot.phase is not Phase.OFF and not drains:
            _tell_alone(progress.alone)
            return "requested"
        wanted = [lease for lease in snapshot.leases if not lease.is_work]
        if wanted and not snapshot.blocks:
            raise UserError(
                f"{target.name} stays on, it is needed again by {lease_words(wanted[0])}; "
                f"{target.command('block')} forbids that"
            )
        work = "; ".join(lease_words(lease) for lease in snapshot.leases if lease.is_work)
        doing = snapshot.phase.value
        if snapshot.phase is Phase.OFF:
            doing = f"the cloud says {snapshot.state.get('observed')}"
        text = f"  {doing}" + (f", waiting for {work}" if work else "")
        if text != last:
            last = text
            say(f"  {target.name}: {said(text.strip())}" if named else text, quiet=quiet)
    if not last:
        text = f"{target.name}: the cloud has not said within {timeout:g} s whether it is on"
        raise UserError(text, ExitCode.TIMEOUT)
    again = f"run {target.command('down')} again or `qwenctl serve`"
    raise UserError(
        f"{target.name} is not off after {timeout:g} s ({last.strip()}); "
        + (
            again
            if progress.alone
            else f"it goes on stopping while {_led(progress)} runs; else {again}"
        ),
        ExitCode.TIMEOUT,
    )


def _led(progress: Progress) -> str:
    """Return who leads, which may have died within the time of its lock."""
    return f"the proxy {progress.last.leader}"


def _raise_refusal(target: Target, progress: Progress, snapshot: Snapshot) -> None:
    """Raise an error if the cloud refuses the stop, and waiting does not help."""
    problem = stop_problem(snapshot)
    if problem is None or not problem.is_final(snapshot.now):
        return
    own = self_stop(snapshot, target.gpu.timing.dead_man)
    again = "nobody goes on trying" if progress.alone else "the proxy goes on trying"
    raise UserError(
        f"{target.name} is still on, and costs: {problem}; {own or again}. Stop it in the cloud's "
        f"console, or mend this and run {target.command('down')} again",
        ExitCode.DENIED if problem.code in _DENIED else ExitCode.FAILED,
    )


def _say_result(target: Target, json: bool, outcome: str, text: str) -> None:
    if json:
        print_json({"gpu": target.name, "outcome": outcome})
    else:
        print(said(text))
    sys.stdout.flush()


def block(
    gpu: str | None,
    for_: float | None,
    because: str,
    now: bool,
    no_wait: bool,
    timeout: float | None,
    dry_run: bool,
    json: bool,
    config: str | None,
) -> None:
    heed_interrupt()
    some_time(for_)
    target = Target.find(gpu, config)
    before = target.store.snapshot(target.name)
    span = "until unblocked" if for_ is None else f"for {duration(for_)}"
    if dry_run:
        if not json:
            print(said(f"would block {target.name} {span}"))
        _explain_down(before, json, now)
        return
    who = user()
    target.store.block(
        target.name, leases.maintenance(who), for_, reason=because, actor=who, force_stop=now
    )
    if not json:
        print(said(f"{target.name} is blocked {span}"), flush=True)
    outcome = _wait_off(target, before, no_wait=no_wait, timeout=timeout, quiet=json)
    if outcome != "already_off":
        _say_result(target, json, outcome, f"{target.name} {_WORDS[outcome]}")
    elif json:
        _say_result(target, json, "blocked", "")


def _with_time(lease: Lease, now: float) -> str:
    """Return who or what needs the GPU, and for how long, unless it is work, which ends by itself."""
    left = "" if lease.is_work else f" ({time_left(lease.expiry - now)} left)"
    return lease_words(lease) + left


def unblock(gpu: str | None, forget: bool, json: bool, config: str | None) -> None:
    target = Target.find(gpu, config, removed=True)
    lifted = target.store.unblock(target.name, actor=user(), forget=forget)
    snapshot = target.store.snapshot(target.name)
    left, wakes = snapshot.blocks, snapshot.leases if snapshot.wanted and lifted else ()
    if json:
        again = [{"lease": lease.name, "text": _with_time(lease, snapshot.now)} for lease in wakes]
        print_json({"gpu": target.name, "lifted": lifted, "needed_by": again})
        return
    if lifted:
        words = "; ".join(said(name_words(name)) for name in lifted)
        print(said(f"{target.name} is no longer blocked by {words}"))
    if wakes:
        words = "; ".join(said(_with_time(lease, snapshot.now)) for lease in wakes)
        does = "stays on" if snapshot.phase.running else "starts again"
        print(said(f"{target.name} {does} for: {words}; {target.command('down')} lets go of it"))
    for block in left:
        print(said(f"{target.name} stays blocked by {lease_words(block)}"))
    if not lifted and not left:
        print(said(f"{target.name} was not blocked"))
