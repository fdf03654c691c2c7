"""`qwenctl up`: hold a lease; a controller starts the GPU.

Progress goes to stderr, the result to stdout.
"""

from __future__ import annotations

import time
from math import inf
from typing import NoReturn

from qwenctl.cli.common.context import Target, heed_interrupt, print_json, some_time, user
from qwenctl.cli.common.language import said
from qwenctl.cli.common.terminal import warn
from qwenctl.cli.use.follow import follow, step_display
from qwenctl.control.standalone import Progress, wake_error
from qwenctl.core import failures, leases
from qwenctl.core.events import EventKind
from qwenctl.core.failures import Failure
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY, full_status, node_url, page_status
from qwenctl.core.wakes import learned, wakes
from qwenctl.core.words import lease_words
from qwenctl.errors import ExitCode, UserError
from qwenctl.lib.text import duration, time_left


def up(
    gpu: str | None,
    for_: float | None,
    because: str,
    no_wait: bool,
    timeout: float | None,
    retry: bool,
    dry_run: bool,
    json: bool,
    config: str | None,
) -> None:
    heed_interrupt()
    some_time(for_)
    target = Target.find(gpu, config)
    most = target.gpu.max_up
    if most and for_ is not None and for_ > most:
        warn(
            f"gpu.{target.name}.max_up allows at most {duration(most)}: it is asked to stay on for "
            f"that long, not for {duration(for_)}."
        )
        for_ = most
    wake = _Wake(target, for_, because, quiet=json)
    if dry_run:
        wake.explain(json)
        return
    try:
        wake.carry_out(no_wait, timeout, retry)
    except UserError as error:
        if json:
            print_json(
                {
                    "gpu": target.name,
                    "outcome": "failed",
                    "error": str(error),
                    "exit_code": int(error.exit_code),
                }
            )
        raise
    except KeyboardInterrupt:
        wake.interrupted()
        raise
    wake.report(json)


class _Wake:
    """A run of `qwenctl up`."""

    def __init__(self, target: Target, for_: float | None, because: str, *, quiet: bool) -> None:
        self.target, self.quiet = target, quiet
        self.who = user()
        self.lease = leases.pin(self.who)
        self.reason = because
        self.exact = for_ is not None
        gpu = target.gpu
        self.ttl = for_ if for_ is not None else gpu.idle_timeout + gpu.boot_estimate
        self.first = target.store.snapshot(target.name)
        self.progress: Progress
        """Set by `carry_out`."""
        self.held_at = 0.0
        now = self.first.now
        left = [lease.expiry - now for lease in self.first.leases if lease.name == self.lease]
        self.shortened = left[0] if self.exact and left and left[0] > self.ttl + 1.0 else None
        """Seconds left of an earlier `up`, if this run shortens them."""

    def carry_out(self, no_wait: bool, timeout: float | None, retry: bool) -> None:
        """Hold the lease, and wait until the GPU is ready or its start is called."""
        with follow(self.target, self.first) as self.progress:
            self.hold()
            if not no_wait:
                self._wait(timeout, retry)
                return
            try:
                self.progress.hand_over()
            except UserError as error:
                if error.exit_code is not ExitCode.TIMEOUT:  # else a later controller calls
                    self._release()
                raise

    def hold(self) -> None:
        """Write or renew the lease.

        Raises:
            UserError: the GPU is blocked, or was given up by `qwenctl down`.
        """
        store, name = self.target.store, self.target.name
        if self.held_at and self.progress.last.released_at > self.held_at:
            raise UserError(f"{name}: somebody said `qwenctl down` meanwhile; not waking it again")
        admission = store.pin(
            name, self.lease, self.ttl, reason=self.reason, actor=self.who, exact=self.exact
        )
        if admission.blocked_by:
            self._blocked(store.snapshot(name))
        self.held_at = self.held_at or store.snapshot(name).now

    def _blocked(self, snapshot: Snapshot) -> NoReturn:
        text = f"{snapshot.gpu} is blocked"
        if snapshot.blocks:
            block = max(snapshot.blocks, key=lambda block: block.expiry)
            left = "until somebody unblocks it"
            if block.expiry != inf:
                left = f"for another {time_left(block.expiry - snapshot.now)}"
            unblock = self.target.command("unblock")
            text += f" by {lease_words(block)}, {left}; {unblock} lifts it"
        raise UserError(text, ExitCode.BLOCKED)

    def explain(self, json: bool) -> None:
        """Print what would be done."""
        snapshot, name = self.first, self.target.name
        if snapshot.blocks:
            self._blocked(snapshot)
        events = self.target.store.events(name, HISTORY)
        page = page_status(snapshot, events, self.target.gpu, may_wake=True)
        seconds = sum(step["expected"] or 0.0 for step in page["steps"])
        starts: bool | None = snapshot.phase not in (Phase.READY, Phase.DRAINING)
        if not starts and not snapshot.leader:
            starts = None  # it may have stopped unobserved
        if json:
            print_json(
                {
                    "gpu": name,
                    "dry_run": True,
                    "phase": snapshot.phase.value,
                    "would_start": starts,
                    "lease": self.lease,
                    "lease_seconds": self.ttl,
                    "expected_seconds": round(seconds, 1) if starts else 0.0,
                }
            )
            return
        effect = f"it is {snapshot.phase.value} already"
        if starts:
            effect = (
                f"it is {snapshot.phase.value} and would be ready in about {time_left(seconds)}"
            )
        elif starts is None:
            effect = f"it was {snapshot.phase.value} when somebody looked last, and would be started if not"
        print(said(f"would keep {name} on for {duration(self.ttl)}; {effect}"))
        self._tell_shortened("would shorten")

    def _tell_shortened(self, verb: str) -> None:
        if self.shortened is not None:
            warn(
                f"This {verb} your earlier `qwenctl up`, which kept it on for another "
                f"{duration(self.shortened)}."
            )

    def _wait(self, timeout: float | None, retry: bool) -> None:
        """Wait until the GPU is ready, and show the steps."""
        progress, began = self.progress, time.monotonic()
        deadline = None if timeout is None else began + timeout
        renew = max(1.0, min(30.0, self.ttl / 3))
        renew_at = began + renew
        known = learned(wakes(progress.events))
        silent: bool | None = None
        failure: Failure | None = None
        given_up = False
        with step_display() as display:
            every = min(renew, display.every)
            for snapshot in progress.snapshots(every=every, deadline=deadline):
                if silent is None:
                    silent = self.quiet or snapshot.phase is Phase.READY
                    self._tell_begin(silent)
                failure = progress.failure(snapshot)
                denied = failures.DENIED in {f.code for f in (failure, snapshot.failure) if f}
                if not silent and not denied:  # the error has the same message
                    page = page_status(snapshot, progress.events, self.target.gpu, may_wake=True)
                    display.show(page, known=known)
                if snapshot.blocks:
                    self._blocked(snapshot)
                if progress.ready(snapshot):
                    self.hold()  # the requested time counts from now on
                    return
                given_up = failure is not None and (denied or not retry)
                if given_up:
                    break
                if time.monotonic() >= renew_at or snapshot.released_at > self.held_at:
                    self.hold()
                    renew_at = time.monotonic() + renew
        if failure and given_up:
            self._release()
            progress.settle(failure)
        raise self._error(failure, timeout)

    def _tell_begin(self, silent: bool) -> None:
        if silent or not self.progress.alone:
            return
        more = "; nothing is heard from the node until `qwenctl serve` runs"
        warn(f"No proxy runs: waking it from here{more if self.target.gpu.agent else ''}.")

    def _error(self, failure: Failure | None, timeout: float | None) -> UserError:
        """Return the error for a failure, or for the timeout."""
        name, phase = self.target.name, self.progress.last.phase.value
        if failure:
            more = self._no_proxy() if failure.code in failures.REPORTED_BY_AGENT else ""
            return wake_error(name, failure, more)
        return UserError(
            f"{name} is not ready after {timeout:g} s (it is {phase}); the wake goes on, "
            f"{self.target.command('down')} gives it up{self._no_proxy()}",
            ExitCode.TIMEOUT,
        )

    def _no_proxy(self) -> str:
        """Return what to add to an error where no proxy runs."""
        if not self.progress.alone or not self.target.gpu.agent:
            return ""
        text = "; no proxy runs that its agent could report to"
        if self.target.gpu.settings.on_this_machine:
            config = self.target.config
            logs = config.state_path / "instances" / config.deployment / self.target.name / "logs"
            text += f", its logs are in {logs}"
        return text

    def _release(self) -> None:
        """Drop our lease, so that nothing is retried later, unobserved."""
        self.target.store.release(
            self.target.name, actor=self.who, reason="up failed", only=self.lease
        )

    def interrupted(self) -> None:
        """Print what continues after Ctrl-C."""
        if not self.held_at:
            return
        name, command, phase = self.target.name, self.target.command, self.progress.last.phase.value
        text = f"\n{name} goes on waking (it is {phase}); {command('down')} gives it up."
        if self.progress.alone:
            text += f" No proxy runs: {command('up')} or `qwenctl serve` carries it on."
        warn(text)

    def report(self, json: bool) -> None:
        """Print the result."""
        target = self.target
        snapshot = self.progress.refresh()
        ready = snapshot.phase is Phase.READY
        alone = self.progress.alone
        url = node_url(snapshot, target.gpu) if alone else target.config.url_of(target.name)
        if json:
            status = full_status(
                snapshot, target.store.events(target.name, HISTORY), target.gpu, url=url
            )
            print_json(
                {
                    "gpu": target.name,
                    "outcome": "ready" if ready else "requested",
                    "phase": snapshot.phase.value,
                    "url": url,
                    "lease": self.lease,
                    "lease_seconds": self.ttl,
                    "shortened_from_seconds": self.shortened,
                    "proxy_runs": not alone,
                    "last_wake": status["last_wake"],
                }
            )
            return
        stays = f"stays on for at least {duration(self.ttl)}"
        if ready:
            way = target.config.way_to(target.name)
            own = "the node's own address; " if alone else f"{way}; " if way else ""
            print(said(f"{target.name} is ready: {url}  ({own}{stays})"))
        else:
            print(said(f"{target.name} is on its way ({snapshot.phase.value}); it {stays}"))
        self._tell_shortened("shortens")
        if alone and not target.gpu.agent:
            warn(
                "No proxy runs, and the instance has no agent (agent = false) that could stop it: it "
                f"runs until {target.command('down')}. Run `qwenctl serve`."
            )
        elif alone and not target.gpu.settings.on_this_machine and not self._agent_heard():
            never = "" if ready else "never becomes ready and "
            warn(
                "No proxy runs, and no agent has ever been heard of: a cloud instance without a proxy "
                f"that its agent can reach {never}is stopped by nobody: run `qwenctl serve`."
            )
        elif alone:
            dead_man = duration(target.gpu.timing.dead_man)
            warn(
                f"No proxy runs, so nobody stops it when it is idle: the instance stops itself after "
                f"{dead_man} without a proxy. Run `qwenctl serve`."
            )

    def _agent_heard(self) -> bool:
        """Return whether an agent has ever reported, as far as the history goes back."""
        events = self.target.store.events(self.target.name, HISTORY)
        heard = (EventKind.HELLO, EventKind.NODE)
        return bool(self.progress.last.node) or any(event.kind in heard for event in events)
