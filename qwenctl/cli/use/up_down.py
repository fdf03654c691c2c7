"""`qwenctl up`, `down`, `block` and `unblock`.

They write leases and blocks; the reconciler starts and stops. Progress goes to stderr, the result to
stdout.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NoReturn

import typer

from qwenctl.cli.common.context import (
    Target,
    heed_interrupt,
    print_json,
    user,
)
from qwenctl.cli.common.terminal import warn
from qwenctl.cli.use.follow import Follower, Reconciling, say, step_display
from qwenctl.cli.use.wake_errors import wake_error
from qwenctl.cli.use.without_proxy import (
    catch_up,
    looked_in_vain,
    make_due_call,
    new_failure,
    seen_on,
)
from qwenctl.clouds.base import Provider
from qwenctl.config.providers import make_provider
from qwenctl.core import failures, leases
from qwenctl.core.events import EventKind
from qwenctl.core.failures import Failure
from qwenctl.core.lifecycle import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY, full_status, node_url, page_status
from qwenctl.core.wakes import learned, wakes
from qwenctl.core.words import lease_words, name_words
from qwenctl.errors import ExitCode, UserError
from qwenctl.lib.text import duration, one_line

__all__ = [
    "block",
    "down",
    "unblock",
    "up",
]

SETTLE_SECONDS = 120.0
"""How long `up` waits after a failure for the bad instance to be stopped."""


def _some_time(seconds: float | None) -> None:
    if seconds is not None and seconds < 1:
        raise typer.BadParameter("it must be at least 1 s", param_hint="--for")


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
    """Do `qwenctl up`."""
    heed_interrupt()
    _some_time(for_)
    target = Target.find(gpu, config)
    wake = _Wake(target, for_, because, quiet=json)
    if dry_run:
        wake.explain(json)
        return
    try:
        wake.prepare()
        wake.hold()
        if no_wait:
            wake.hand_over()
        else:
            wake.wait(timeout, retry)
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
    """One `qwenctl up`."""

    def __init__(self, target: Target, for_: float | None, because: str, *, quiet: bool) -> None:
        self.target, self.quiet = target, quiet
        self.who = user()
        self.lease = leases.pin(self.who)
        self.reason = because
        self.exact = for_ is not None
        gpu = target.gpu
        self.ttl = for_ if for_ is not None else gpu.idle_timeout + gpu.boot_estimate
        self.first = self.last = target.store.snapshot(target.name)
        self.held_at = 0.0
        self.ours = ""
        """The name of our own controller, once it runs."""
        self.provider: Provider | None = None
        """For our own controller; None: not made yet."""
        now = self.first.now
        left = [lease.expiry - now for lease in self.first.leases if lease.name == self.lease]
        self.shortened = left[0] if self.exact and left and left[0] > self.ttl + 1.0 else None
        """Seconds for which an earlier `up` was to keep it on, if this one ends that sooner."""

    @property
    def alone(self) -> bool:
        """Whether no proxy runs: nobody leads, or only our own controller does."""
        return self.last.leader in ("", self.ours)

    def prepare(self) -> None:
        """Where no proxy runs, make what is needed to wake it; raises before anything is written."""

        target = self.target
        if not self.first.leader:
            self.provider = make_provider(target.name, target.gpu, target.config)

    def hold(self) -> None:
        """Pin it, or pin it anew; raises if somebody forbids that."""
        store, name = self.target.store, self.target.name
        if self.held_at and self.last.released_at > self.held_at:
            raise UserError(f"{name}: somebody said `qwenctl down` meanwhile; not waking it again")
        admission = store.pin(
            name, self.lease, self.ttl, reason=self.reason, actor=self.who, exact=self.exact
        )
        if admission.blocked_by:
            self._blocked(store.snapshot(name))
        self.held_at = self.held_at or store.snapshot(name).now

    def _blocked(self, snapshot: Snapshot) -> NoReturn:
        words = _block_words(self.target, snapshot) or f"{snapshot.gpu} is blocked"
        raise UserError(words, ExitCode.BLOCKED)

    def explain(self, json: bool) -> None:
        """What would be done."""

        snapshot, name = self.first, self.target.name
        if snapshot.blocks:
            self._blocked(snapshot)
        events = self.target.store.events(name, HISTORY)
        page = page_status(snapshot, events, self.target.gpu, may_wake=True)
        seconds = sum(step["expected"] or 0.0 for step in page["steps"])
        starts: bool | None = snapshot.phase not in (Phase.READY, Phase.DRAINING)
        if not starts and not snapshot.leader:
            starts = None  # what is recorded as on may have ended unseen
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
            effect = f"it is {snapshot.phase.value} and would be ready in about {duration(seconds)}"
        elif starts is None:
            effect = f"it was {snapshot.phase.value} when somebody looked last, and would be started if not"
        print(f"would keep {name} on for {duration(self.ttl)}; {effect}")
        self._tell_shortened("would shorten")

    def _tell_shortened(self, verb: str) -> None:

        if self.shortened is not None:
            warn(
                f"This {verb} your earlier `qwenctl up`, which kept it on for another "
                f"{duration(self.shortened)}."
            )

    def hand_over(self) -> None:
        """With --no-wait: where no controller runs, make the start call ourselves."""

        if self.first.leader:
            return
        try:
            self.ours = make_due_call(self.target, self.provider)
        except UserError as error:
            if error.exit_code is not ExitCode.TIMEOUT:  # a proxy, or the next `up`, makes the call
                self._release()
            raise

    def _catch_up(self) -> None:
        """Where no controller runs, see what became of it since somebody looked last."""

        self.last = self.target.store.snapshot(self.target.name)
        if self.last.leader:
            return
        try:
            catch_up(self.target, self.last, self.provider)
        except UserError:
            self._release()
            raise
        self.last = self.target.store.snapshot(self.target.name)  # it may be off after all

    def _is_ready(self, snapshot: Snapshot) -> bool:
        """Whether it is ready; where no proxy runs, not before the cloud has said that it is on."""

        followed = bool(self.first.leader) or seen_on(snapshot, self.first.now)
        return snapshot.phase is Phase.READY and followed

    def wait(self, timeout: float | None, retry: bool) -> None:
        """Until it is ready, showing how far it is."""

        began = time.monotonic()
        deadline = None if timeout is None else began + timeout
        renew = max(1.0, min(30.0, self.ttl / 3))
        renew_at = began + renew
        given_up: Failure | None = None
        self._catch_up()
        was_ready = self.last.phase is Phase.READY
        if not self.first.leader and not was_ready and not self.quiet:
            more = "; nothing is heard from the node until `qwenctl serve` runs"
            warn(f"No proxy runs: waking it from here{more if self.target.gpu.agent else ''}.")
        with Follower(self.target) as follower, self._reconciling(follower) as ours:
            self.ours = ours.owner
            known = learned(wakes(follower.events))
            with step_display(quiet=self.quiet or was_ready) as display:
                every = min(renew, display.every)
                for snapshot in follower.snapshots(every=every, deadline=deadline):
                    self.last = snapshot
                    failure = self._new_failure(snapshot)
                    if failure and failure.code == failures.DENIED:
                        given_up = failure
                        break
                    # The message of one that is denied comes with the error.
                    if not (snapshot.failure and snapshot.failure.code == failures.DENIED):
                        display.show(
                            page_status(snapshot, follower.events, self.target.gpu, may_wake=True),
                            known=known,
                        )
                    if snapshot.blocks:
                        self._blocked(snapshot)
                    if self._is_ready(snapshot):
                        self.hold()  # from now on for the whole time asked for
                        self.last = self.target.store.snapshot(self.target.name)
                        return
                    if failure and not retry:
                        given_up = failure
                        break
                    if time.monotonic() >= renew_at or snapshot.released_at > self.held_at:
                        self.hold()
                        renew_at = time.monotonic() + renew
            if given_up:
                self._release()
                self._settle(follower, given_up)
        if failure := given_up or self._new_failure(self.last):
            raise self._failure_error(failure)
        raise UserError(
            f"{self.target.name} is not ready after {timeout:g} s (it is {self.last.phase.value}); "
            f"the wake goes on, {self.target.command('down')} gives it up" + self._no_proxy(),
            ExitCode.TIMEOUT,
        )

    def _reconciling(self, follower: Follower) -> Reconciling:

        return Reconciling(self.target, follower, provider=self.provider)

    def _no_proxy(self) -> str:
        """What to know of a wake that came to nothing where no proxy runs; else empty."""
        if not self.alone or not self.target.gpu.agent:
            return ""
        text = "; no proxy runs that its agent could report to"
        if self.target.gpu.settings.on_this_machine:
            config = self.target.config
            logs = config.state_path / "instances" / config.deployment / self.target.name / "logs"
            text += f", its logs are in {logs}"
        return text

    def _new_failure(self, snapshot: Snapshot) -> Failure | None:

        return new_failure(self.first, snapshot)

    def _release(self) -> None:
        """Without us wanting it, nothing is tried again later, unseen."""
        self.target.store.release(
            self.target.name, actor=self.who, reason="up failed", only=self.lease
        )

    def _settle(self, follower: Any, failure: Failure) -> None:
        """Where no proxy runs, see to it that a bad instance does not stay on."""

        if self.first.leader:
            return
        deadline = time.monotonic() + SETTLE_SECONDS
        for snapshot in follower.snapshots(every=5.0, deadline=deadline):
            if snapshot.phase is Phase.OFF or snapshot.wanted:
                return
            if failure.code == failures.DENIED and looked_in_vain(self.first, snapshot):
                return

    def _failure_error(self, failure: Failure) -> UserError:
        more = self._no_proxy() if failure.code in failures.REPORTED_BY_AGENT else ""
        return wake_error(self.target.name, failure, more)

    def interrupted(self) -> None:
        name = self.target.name
        if not self.held_at:
            return
        command = self.target.command
        text = f"\n{name} goes on waking (it is {self.last.phase.value}); {command('down')} gives it up."
        if self.alone:
            text += f" No proxy runs: {command('up')} or `qwenctl serve` carries it on."
        warn(text)

    def report(self, json: bool) -> None:
        """The result."""

        target = self.target
        snapshot = self.last = target.store.snapshot(target.name)
        ready = snapshot.phase is Phase.READY
        alone = self.alone
        url = node_url(snapshot, target.gpu) if alone else target.config.url
        if json:
            status = full_status(
                snapshot,
                target.store.events(target.name, HISTORY),
                target.gpu,
                url=url,
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
            own = "the node's own address; " if alone else ""
            print(f"{target.name} is ready: {url}  ({own}{stays})")
        else:
            print(f"{target.name} is on its way ({snapshot.phase.value}); it {stays}")
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
        """Whether an agent has ever reported, as far back as the history goes."""

        events = self.target.store.events(self.target.name, HISTORY)
        return bool(self.last.node) or any(
            event.kind in (EventKind.HELLO, EventKind.NODE) for event in events
        )


def _block_words(target: Target, snapshot: Snapshot) -> str:
    """Who blocks it, why and until when; empty if nobody does."""
    from math import inf

    if not snapshot.blocks:
        return ""
    block = max(snapshot.blocks, key=lambda block: block.expiry)
    left = "until somebody unblocks it"
    if block.expiry != inf:
        left = f"for another {duration(block.expiry - snapshot.now)}"
    who = lease_words(block)
    return f"{target.name} is blocked by {who}, {left}; {target.command('unblock')} lifts it"


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
    """Do `qwenctl down`."""
    heed_interrupt()
    target = Target.find(gpu, config)
    before = target.store.snapshot(target.name)
    if dry_run:
        _explain_down(before, json, now)
        return
    dropped = target.store.release(target.name, actor=user(), reason=because, cut=now)
    if _found_off(target, before, timeout):
        extra = f"; dropped {dropped} demand{'s' if dropped != 1 else ''}" if dropped else ""
        _say_result(target, json, "already_off", f"{target.name} is off already{extra}")
        return
    _wait_off(target, before, no_wait=no_wait, timeout=timeout, json=json)


def _is_off(snapshot: Snapshot) -> bool:

    return snapshot.phase is Phase.OFF


def _gone(snapshot: Snapshot) -> bool:
    """Whether the cloud says that no instance runs."""

    return snapshot.state.get("observed") in (Observed.STOPPED.value, Observed.ABSENT.value)


def _looked_since(snapshot: Snapshot, before: Snapshot) -> bool:
    return (snapshot.time("observed_at") or 0.0) >= before.now


def _found_off(target: Target, before: Snapshot, timeout: float | None) -> bool:
    """Whether it is off already. Where nobody looks after it, the cloud is asked, and the stop of
    one that runs all the same is begun.

    Raises:
        UserError: the cloud cannot be asked, or has not answered within ``timeout`` seconds, or
            what runs is to be left alone.
    """

    if before.leader or not _is_off(before):
        return _is_off(before)
    deadline = None if timeout is None else time.monotonic() + timeout
    with Follower(target) as follower, Reconciling(target, follower, keep_found=False):
        for snapshot in follower.snapshots(every=0.5, deadline=deadline):
            if not _is_off(snapshot):
                return False
            if _looked_since(snapshot, before):
                _raise_if_stuck(target, snapshot)
                return _gone(snapshot)
    raise UserError(
        f"{target.name}: the cloud has not said within {timeout:g} s whether it is on",
        ExitCode.TIMEOUT,
    )


def _raise_if_stuck(target: Target, snapshot: Snapshot) -> None:
    """Raises `UserError` where waiting for it to go off is in vain. It has just been looked at."""

    if snapshot.phase not in (Phase.OFF, Phase.FAILED):
        return
    if error := snapshot.state.get("observe_error"):
        raise UserError(
            f"{target.name}: the cloud cannot be asked whether it is on: {one_line(error)}"
        )
    running = snapshot.state.get("observed") == Observed.RUNNING.value
    if running and _is_off(snapshot) and target.gpu.found_running == "ignore":
        raise UserError(
            f"{target.name} was found running and is left alone (found_running = ignore): stop it "
            "in the cloud's console"
        )


def _explain_down(snapshot: Snapshot, json: bool, now: bool) -> None:

    going = [lease for lease in snapshot.leases if now or not lease.is_work]
    staying = [lease for lease in snapshot.leases if lease.is_work and not now]
    # What is recorded as off may run all the same where nobody looks after it.
    would_stop = None if _is_off(snapshot) and not snapshot.leader else not _is_off(snapshot)
    if json:
        print_json(
            {
                "gpu": snapshot.gpu,
                "dry_run": True,
                "phase": snapshot.phase.value,
                "would_stop": would_stop,
                "dropped": [lease.name for lease in going],
                "finished_first": [lease.name for lease in staying],
            }
        )
        return
    if _is_off(snapshot):
        if snapshot.leader:
            print(f"{snapshot.gpu} is off already")
        else:
            print(f"would ask the cloud whether {snapshot.gpu} is off already, and stop it if not")
        return
    print(f"would stop {snapshot.gpu}, which is {snapshot.phase.value}")
    for lease in going:
        print(f"  {'cutting' if lease.is_work else 'against'} {lease_words(lease)}")
    for lease in staying:
        print(f"  after {lease_words(lease)} is finished")


def _wait_off(
    target: Target, before: Snapshot, *, no_wait: bool, timeout: float | None, json: bool
) -> None:
    """Wait until off, with our own reconciler where no proxy runs one."""
    if no_wait:
        if not before.leader:
            warn(
                "No proxy runs, so nobody stops it yet: leave out --no-wait, or run `qwenctl serve`."
            )
        _say_result(target, json, "requested", f"{target.name} is going off")
        return
    try:
        _follow_down(target, before, timeout, quiet=json)
    except KeyboardInterrupt:
        again = f" once {target.command('down')} or `qwenctl serve` runs again"
        carry = "" if before.leader else again
        warn(f"\n{target.name} goes on stopping{carry}.")
        raise
    _say_result(target, json, "off", f"{target.name} is off")


def _follow_down(target: Target, before: Snapshot, timeout: float | None, *, quiet: bool) -> None:

    leader, said = before.leader, ""
    deadline = None if timeout is None else time.monotonic() + timeout
    # `down` wins over adopting what is found running.
    with Follower(target) as follower, Reconciling(target, follower, keep_found=False):
        for snapshot in follower.snapshots(every=5.0, deadline=deadline):
            if _is_off(snapshot) and (leader or _gone(snapshot)):
                return
            if not leader and _looked_since(snapshot, before):
                _raise_if_stuck(target, snapshot)
            wanted = [lease for lease in snapshot.leases if not lease.is_work]
            if wanted and not snapshot.blocks:
                raise UserError(
                    f"{target.name} stays on, it is needed again by {lease_words(wanted[0])}; "
                    f"{target.command('block')} forbids that"
                )
            work = "; ".join(lease_words(lease) for lease in snapshot.leases if lease.is_work)
            doing = snapshot.phase.value
            if _is_off(snapshot):
                doing = f"the cloud says {snapshot.state.get('observed')}"
            text = f"  {doing}" + (f", waiting for {work}" if work else "")
            if text != said:
                said = text
                say(text, quiet=quiet)
    raise UserError(
        f"{target.name} is not off after {timeout:g} s ({said.strip()}); "
        + (
            "it goes on stopping"
            if leader
            else f"run {target.command('down')} again or `qwenctl serve`"
        ),
        ExitCode.TIMEOUT,
    )


def _say_result(target: Target, json: bool, outcome: str, text: str) -> None:
    if json:
        print_json({"gpu": target.name, "outcome": outcome})
    else:
        print(text)
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
    """Do `qwenctl block`."""

    heed_interrupt()
    _some_time(for_)
    target = Target.find(gpu, config)
    before = target.store.snapshot(target.name)
    span = "until unblocked" if for_ is None else f"for {duration(for_)}"
    if dry_run:
        if not json:
            print(f"would block {target.name} {span}")
        _explain_down(before, json, now)
        return
    who = user()
    target.store.block(
        target.name, leases.maintenance(who), for_, reason=because, actor=who, cut=now
    )
    if not json:
        print(f"{target.name} is blocked {span}", flush=True)
    if _found_off(target, before, timeout):
        if json:
            _say_result(target, json, "blocked", "")
        return
    _wait_off(target, before, no_wait=no_wait, timeout=timeout, json=json)


def unblock(gpu: str | None, json: bool, config: str | None) -> None:
    """Do `qwenctl unblock`."""

    target = Target.find(gpu, config)
    lifted = target.store.unblock(target.name, actor=user())
    if json:
        print_json({"gpu": target.name, "lifted": lifted})
    elif lifted:
        words = "; ".join(name_words(name) for name in lifted)
        print(f"{target.name} is no longer blocked by {words}")
    else:
        print(f"{target.name} was not blocked")
