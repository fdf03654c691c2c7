"""Checks of the doctor for a running instance: its address, port and agent."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from qwenctl.admin.deployment_checks import Deployment
from qwenctl.clouds.base import Observation
from qwenctl.clouds.check_steps import rough_duration
from qwenctl.config.gpu import GpuConfig
from qwenctl.core import refusals
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.core.status import HISTORY, own_record
from qwenctl.core.stops import stop_problem
from qwenctl.core.versions import skew
from qwenctl.core.wakes import Outcome, wakes
from qwenctl.core.words import (
    ONE_CONFIGURATION,
    cause_words,
    lease_words,
    other_port,
    present_failure,
    problem_of,
)
from qwenctl.errors import StoreUnavailable
from qwenctl.lib.findings import Finding, fail, ok, warn
from qwenctl.lib.http_probe import PATIENCE, brief_reason
from qwenctl.lib.text import one_line
from qwenctl.store.store import Store


def node_checks(deployment: Deployment, name: str, seen: Observation) -> Iterable[Finding]:
    """Check address, port and agent of a running instance."""
    gpu = deployment.config.gpu[name]
    yield from deployment.claim(name, seen)
    if seen.state is not Observed.RUNNING:
        yield ok("node", f"the instance is {seen.state.value}: nothing to reach now")
        return
    address = gpu.address or seen.address
    snapshot = deployment.snapshot(name)
    hello = snapshot is not None and snapshot.node_view.hello
    if address and snapshot is not None:
        ours = hello and gpu.agent
        yield _reach(name, address, gpu.port, hello=ours, agent=gpu.agent)
    age = snapshot.node_view.heartbeat_age if snapshot is not None else None
    if snapshot is None:
        return
    if differs := other_port(snapshot, gpu.port):
        yield fail("settings", differs, f"{ONE_CONFIGURATION.capitalize()}.")
    if gpu.agent:
        yield from _versions(snapshot)
    if not gpu.agent:
        yield from _asked(gpu, snapshot, age)
        return
    if snapshot.phase is Phase.OFF:
        yield warn(
            "agent",
            "the instance runs, but qwenctl counts it as off and so hears no agent",
            "Start `qwenctl serve`, which takes over what it finds running, or run `qwenctl up`.",
        )
    elif not snapshot.leader and (not hello or age is None or age > gpu.timing.node_lost):
        yield warn(
            "agent",
            "the instance runs, but no proxy does that its agent could report to",
            "Start `qwenctl serve`.",
        )
    elif not hello or age is None:
        yield fail(
            "agent",
            "the instance runs, but its agent has said nothing",
            "See `journalctl -u qwenctl-node` on the node; `qwenctl provision` prints how it is "
            "installed, and proxy.node_urls is where it looks for the proxy.",
        )
    elif age > gpu.timing.node_lost:
        yield fail(
            "agent",
            f"silent for {rough_duration(age)}",
            "See `journalctl -u qwenctl-node` on the node, and whether it still reaches "
            f"{deployment.config.node_urls[0]}.",
        )
    else:
        yield from _agent_says(name, snapshot, age)


def _agent_says(name: str, snapshot: Snapshot, age: float) -> Iterable[Finding]:
    """Check what the agent reports of itself and of its services."""
    view, logs = snapshot.node_view, f"`qwenctl logs --gpu {name}` shows what it wrote."
    state = f"{view.state or 'there'}, heard {age:.0f} s ago"
    if view.state == "failed":
        yield fail("agent", f"{state}: {one_line(view.error) or 'it gives no reason'}", logs)
    elif problem := problem_of(snapshot):
        yield warn("agent", f"{state}: {one_line(problem)}", f"It may still be loading; {logs}")
    else:
        yield ok("agent", state)
    for service in snapshot.report.services if snapshot.report else ():
        if service.state in ("failed", "crashed") and service.error not in view.error:
            found = f"{service.name} has {service.state}: {one_line(service.error)}".rstrip(": ")
            yield fail("service", found, logs)
        elif service.doubt:
            found = f"{service.name}: {one_line(service.doubt)}"
            yield warn("service", found, f"{logs} `qwenctl restart` restarts it.")


def recorded(name: str, gpu: GpuConfig, store: Store) -> Iterable[Finding]:
    """Check what the proxies have written down: blocks, failures, a stop without effect."""
    try:
        snapshot, events, _ = own_record(store.snapshot(name), store.events(name, HISTORY), gpu)
    except StoreUnavailable:
        return
    for block in snapshot.blocks:
        found = f"blocked by {lease_words(block)}: nothing wakes it"
        yield warn("block", found, f"`qwenctl unblock --gpu {name}` lifts it.")
    if problem := stop_problem(snapshot):
        fix = f"`qwenctl why --gpu {name}` says more; else stop it in the cloud's console."
        yield fail("stop", f"it is still on, and costs: {problem}", fix)
    why = f"`qwenctl why --gpu {name}` and `qwenctl logs --gpu {name}` say more."
    if failure := present_failure(snapshot):
        text = f"failed: {cause_words(failure.code)}: {one_line(failure.message)}"
        yield fail("last wake", text, f"Mend that; {why}")
    elif (history := wakes(events)) and history[-1].outcome is Outcome.FAILED:
        ago = rough_duration(snapshot.now - (history[-1].ended_at or history[-1].started_at))
        text = f"failed {ago} ago: {cause_words(history[-1].code)}"
        yield warn("last wake", text, f"The next demand tries again. {why}")


def _versions(snapshot: Snapshot) -> Iterable[Finding]:
    """Check that agent and proxy understand each other, by what the proxy has noted."""
    if refused := refusals.refusal(snapshot):
        yield fail("agent", refused.text, refused.advice)
    found = skew(snapshot)
    if found is not None:
        say = fail if found.hinders else warn
        yield say("versions", str(found), f"To upgrade, {found.upgrade}.")
    elif version := snapshot.node.get("proxy_version"):
        yield ok("versions", f"agent and proxy are {version}")


def _asked(gpu: GpuConfig, snapshot: Snapshot, age: float | None) -> Iterable[Finding]:
    """Check the readiness probes of an instance without an agent."""
    view = snapshot.node_view
    path = gpu.service[0].readiness.path if gpu.service else "/"
    if not snapshot.leader:
        yield warn(
            "readiness",
            "the instance runs, but nobody asks its WebUI, and nobody stops it",
            "Start `qwenctl serve`, which takes over what it finds running, or run `qwenctl down`.",
        )
    elif age is not None and view.state == "ready" and age <= 4 * gpu.timing.heartbeat:
        yield ok("readiness", f"GET {path} was answered {age:.0f} s ago")
    else:
        yield warn(
            "readiness",
            f"GET {path} on port {gpu.port} is not answered as it should: "
            f"{view.error or 'no answer'}",
            "It may still be loading. If not, log in to the instance: the WebUI must start with it "
            "and listen on all addresses; or correct service.readiness.path.",
        )


def _reach(name: str, host: str, port: int, *, hello: bool, agent: bool) -> Finding:
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except ConnectionRefusedError:
        if not agent:
            return warn(
                "node",
                f"{host} answers, but nothing listens on port {port}",
                "The WebUI may still be loading. It must start by itself with the instance, and "
                "listen on all addresses, not only on 127.0.0.1.",
            )
        if not hello:
            return warn(
                "node",
                f"{host} answers, but nothing listens on port {port} yet",
                "The agent starts the service; see the check of the agent.",
            )
        return warn(
            "node",
            f"nothing listens on port {port} of {host}",
            f"The service may still be loading: see `qwenctl logs --gpu {name}`. It must listen on "
            "all addresses, not only on 127.0.0.1.",
        )
    except OSError as error:
        return fail(
            "node",
            f"port {port} of {host} cannot be reached from here ({brief_reason(error)})",
            "Allow it in the security group (`qwenctl provision --apply`), or choose another "
            "address: the private one works only within the same network.",
        )
    return ok("node", f"port {port} of {host} can be reached")
