"""The leading proxy is killed or frozen at every step of a wake and of a stop.

Whoever comes after it finishes what it began: no second start for one wake, no stop with a request
in flight, no call that comes late.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.deployment import Deployment, ProxyProcess, owner_pid
from tests.support.parallel import at_once
from tests.support.paths import ROOT

SLOW_CLOUD = ROOT / "tests" / "support" / "slow_cloud"

TAKEOVER = 15.0
"""Longer than a dead leader's lock lasts, in seconds."""

WAKE = (Phase.STARTING, Phase.BOOTING, Phase.LOADING, Phase.READY)
STOP = (Phase.DRAINING, Phase.STOPPING)


def keep_trying(proxy: ProxyProcess, path: str = "/count", timeout: float = 60.0) -> int:
    """The status that a client gets who tries again when its connection breaks."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            return proxy.post(path, timeout=timeout).status_code
        time.sleep(0.1)
    return 0


def kill_leader_at(deployment: Deployment, phase: Phase, after: str) -> ProxyProcess:
    event = deployment.wait_transition(phase, after=after, timeout=TAKEOVER + 15)
    for proxy in deployment.proxies:
        if proxy.alive and proxy.pid == owner_pid(event.fields["actor"]):
            proxy.kill()
            return proxy
    raise AssertionError(f"nobody of us made it {phase.value}\n{deployment.history()}")


def wake_survives(deployment: Deployment, phase: Phase) -> None:
    """Kill the leader in that phase of a wake; the held request is answered, the GPU goes off."""
    leader = deployment.leader()
    survivor = (deployment.others(leader) or [leader])[0]
    alone = survivor is leader
    after = deployment.last_event()
    with ThreadPoolExecutor(1) as thread:
        # In flight for longer than the idle timeout, so that a careless stop would cut it.
        held: Future[int] = thread.submit(keep_trying, survivor, "/count?seconds=3")
        killed = kill_leader_at(deployment, phase, after)
        if alone:
            killed.start().wait_ready()
        assert held.result() == 200, deployment.history()
    instance = deployment.instance()
    assert len(instance.starts) <= 1, deployment.history()  # its line may have died with the leader
    assert len(instance.boots) == 1, deployment.history()
    assert not instance.stops
    # The in-flight lease of a proxy that died with a request lasts 30 s.
    deployment.wait_transition(Phase.OFF, after=after, timeout=60)
    assert len(instance.boots) == 1, deployment.history()
    assert len(instance.stops) <= 1
    instance.assert_nothing_cut()


def stop_survives(deployment: Deployment, phase: Phase, *, demand: bool) -> None:
    """Kill the leader in that phase of a stop; with new demand it ends ready, without it off."""
    leader = deployment.leader()
    survivor = (deployment.others(leader) or [leader])[0]
    assert survivor.post().status_code == 200
    after = deployment.last_event()
    killed = kill_leader_at(deployment, phase, after)
    if killed is survivor:
        killed.start().wait_ready()
    instance = deployment.instance()
    if demand:
        # The survivor may not know of the drain yet and just forward it, as in any second before the
        # stop; that alone does not outlast the dead leader's lock. Demand that goes on does.
        deadline = time.monotonic() + TAKEOVER + 30
        while True:
            assert keep_trying(survivor) == 200, deployment.history()
            if deployment.store.snapshot("main").phase is Phase.READY:
                break
            assert time.monotonic() < deadline, deployment.history()
            time.sleep(0.2)
        # A proxy that was alone may have come back in time to go on with the same boot, or not.
        in_time = {1, 2} if killed is survivor else {1}
        # The successor of one that died before its stop call goes back to the drain.
        allowed = in_time if phase is Phase.DRAINING else {1, 2}
        assert len(instance.boots) in allowed, deployment.history()
        after = deployment.last_event()
    deployment.wait_transition(Phase.OFF, after=after, timeout=TAKEOVER + 30)
    assert instance.record["state"] == "stopped"
    assert len(instance.stops) <= len(instance.boots), deployment.history()
    instance.assert_nothing_cut()


@pytest.mark.slow
def test_a_wake_outlives_its_leader(deploy: Deploy) -> None:
    deployment = deploy(replicas=2).start()
    wake_survives(deployment, Phase.BOOTING)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 1], ids=["taken-over", "restarted"])
def test_kill_9_at_every_transition(deploy: Deploy, replicas: int) -> None:
    def scenario(phase: Phase, demand: bool) -> None:
        deployment = deploy(replicas=replicas).start()
        if phase in WAKE:
            wake_survives(deployment, phase)
        else:
            stop_survives(deployment, phase, demand=demand)

    scenarios = [(phase, True) for phase in WAKE]
    scenarios += [(phase, demand) for phase in STOP for demand in (True, False)]
    at_once(*(lambda p=p, d=d: scenario(p, d) for p, d in scenarios))


@pytest.mark.slow
def test_kill_9_at_random_moments(deploy: Deploy) -> None:
    """Replicas die and come back at any moment while clients come and go."""
    seconds = 45.0

    def scenario(seed: int) -> None:
        dice = random.Random(seed)
        deployment = deploy(replicas=2, gpus={"main": {"idle_timeout": 1}}).start()
        over = threading.Event()
        wrong: list[str] = []

        def client() -> None:
            while not over.is_set():
                proxy = dice.choice(deployment.proxies)
                with suppress(requests.ConnectionError):  # it was killed
                    answer = proxy.post("/count?seconds=0.3")
                    if answer.status_code != 200:
                        wrong.append(f"{answer.status_code} {answer.text}")
                over.wait(dice.choice([0.1, 1.0, 4.2, 6.0]))

        def monkey() -> None:
            while not over.wait(dice.uniform(0.5, 5.0)):
                victim = dice.choice(deployment.proxies)
                victim.kill()
                over.wait(dice.uniform(0.0, 3.0))
                victim.start()

        clients = [threading.Thread(target=each) for each in (client, client, monkey)]
        for each in clients:
            each.start()
        over.wait(seconds)
        over.set()
        for each in clients:
            each.join()
        for proxy in deployment.proxies:
            proxy.wait_ready()
        assert not wrong, wrong
        deployment.wait_phase(Phase.OFF, timeout=70)
        instance = deployment.instance()
        instance.assert_nothing_cut()
        assert instance.record["state"] == "stopped"
        assert abs(len(instance.starts) - len(instance.stops)) <= 1, deployment.history()

    at_once(*(lambda s=s: scenario(s) for s in (1, 2, 3)))


def slow_cloud(deploy: Deploy) -> Deployment:
    """Two replicas that take a second from the decision to call the cloud to the call."""
    return deploy(
        replicas=2,
        gpus={"main": {"provider": "slow"}},
        env={"PYTHONPATH": str(SLOW_CLOUD)},
    ).start()


def freeze_before_call(deployment: Deployment, leader: ProxyProcess, to: Phase, after: str) -> None:
    deployment.wait_transition(to, after=after)
    time.sleep(0.3)  # it has decided, and has not checked yet
    leader.send(signal.SIGSTOP)


@pytest.mark.slow
def test_a_leader_frozen_before_its_start_call_starts_nothing_later(deploy: Deploy) -> None:
    """The GPU was started, used and stopped by the successor when the frozen one wakes up."""
    deployment = slow_cloud(deploy)
    leader = deployment.leader()
    (survivor,) = deployment.others(leader)
    instance = deployment.instance()
    after = deployment.last_event()
    with ThreadPoolExecutor(1) as thread:
        held = thread.submit(survivor.post, "/count")
        freeze_before_call(deployment, leader, Phase.STARTING, after)
        try:
            assert not instance.starts, "frozen too late: the call was made"
            assert held.result().status_code == 200
            off = deployment.wait_transition(Phase.OFF, after=after, timeout=TAKEOVER + 20)
        finally:
            leader.send(signal.SIGCONT)
    late = [e for e in deployment.follow("main", off.id, 3.0) if e.kind in ("call", "transition")]
    assert not late, deployment.history()
    assert len(instance.starts) == len(instance.stops) == 1
    assert instance.record["state"] == "stopped"


@pytest.mark.slow
def test_a_leader_frozen_before_its_stop_call_stops_nothing_later(deploy: Deploy) -> None:
    """The successor has begun the drain anew, and a request has ended it, when the frozen one wakes."""
    deployment = slow_cloud(deploy)
    leader = deployment.leader()
    (survivor,) = deployment.others(leader)
    assert survivor.post().status_code == 200
    instance = deployment.instance()
    after = deployment.last_event()
    freeze_before_call(deployment, leader, Phase.STOPPING, after)
    try:
        assert not instance.stops, "frozen too late: the call was made"
        with ThreadPoolExecutor(1) as thread:
            stream = thread.submit(survivor.post, "/stream?seconds=6")
            deployment.wait_transition(Phase.READY, after=after, timeout=TAKEOVER + 20)
            assert not instance.stops
            leader.send(signal.SIGCONT)
            assert stream.result().text.endswith("end\n"), deployment.history()
    finally:
        leader.send(signal.SIGCONT)
    assert (len(instance.starts), len(instance.stops)) == (1, 0), deployment.history()
    instance.assert_nothing_cut()
