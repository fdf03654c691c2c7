"""Two deployments that name one instance: it belongs to the first, and the second leaves it alone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from qwenctl.clouds.base import Accepted, Observation
from qwenctl.clouds.claimed import RETRY_SECONDS, Claimed, ClaimedProvider, claiming
from qwenctl.clouds.fallback import Fallback
from qwenctl.core.claims import ABANDONED_SECONDS, REFRESH_SECONDS, STALE_SECONDS, TAG, Claim
from qwenctl.core.phase import Observed, Phase
from qwenctl.errors import ExitCode
from qwenctl.store.deployment_id import AGAIN_SECONDS, FILE, cached_id, deployment_id
from qwenctl.store.store import Store
from tests.support.deployment import Deployment
from tests.support.fake_ecs import FakeEcs
from tests.support.fake_ecs.client import provider_for
from tests.support.fake_ecs.deployed import key_in_environment, put_agent, table_of
from tests.support.program import PROGRAM, inherited
from tests.support.waiting import until


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def of(fake: FakeEcs, name: str, clock: Clock, owner: str = "") -> ClaimedProvider:
    provider = provider_for(fake)
    return ClaimedProvider(provider, f"{name}/main", lambda: owner or f"id-of-{name}", clock)


def test_the_first_claims_it_and_the_second_refuses(fake: FakeEcs) -> None:
    instance = fake.cloud.add(start_seconds=0, stop_seconds=0, tags={"Name": "my GPU"})
    clock = Clock()
    first, second = of(fake, "first", clock), of(fake, "second", clock)
    assert first.describe().state is Observed.STOPPED
    assert instance.tags["Name"] == "my GPU"
    assert instance.tags[TAG].startswith("id-of-first first/main ")
    clock.now += 3 * 3600
    for call in (second.describe, second.start, second.stop):
        with pytest.raises(Claimed) as refused:
            call()
        assert "another deployment, 'first' (gpu.main, for 3 h" in str(refused.value)
        assert refused.value.code == "claimed"
    assert (instance.starts, instance.stops) == (0, 0)
    first.describe()
    first.start()
    until(lambda: first.describe().state is Observed.RUNNING)
    with pytest.raises(Claimed):
        second.describe()
    first.stop()
    assert instance.stops == 1
    del instance.tags[TAG]  # type: ignore[attr-defined]  # how a person hands it over
    until(lambda: second.describe().state is Observed.STOPPED)
    with pytest.raises(Claimed):
        first.describe()


def test_a_claim_costs_one_call_an_hour(fake: FakeEcs) -> None:
    fake.cloud.add()
    clock = Clock()
    provider = of(fake, "first", clock)
    for _ in range(10):
        provider.describe()
    assert fake.received["TagResources"] == 1
    assert fake.received["DescribeInstances"] == 11  # one more after the first claim
    began = clock.now
    clock.now += REFRESH_SECONDS
    for _ in range(10):
        provider.describe()
    assert fake.received["TagResources"] == 2
    claim = Claim.decode(provider.describe().claim)
    assert claim is not None
    assert (claim.since, claim.seen) == (began, clock.now)


@pytest.mark.parametrize("status", ["Stopped", "Running"])
def test_a_stale_claim_holds_only_what_runs(fake: FakeEcs, status: str) -> None:
    instance = fake.cloud.add()
    clock = Clock()
    of(fake, "first", clock).describe()
    instance.status = status
    second = of(fake, "second", clock)
    clock.now += STALE_SECONDS - 1
    with pytest.raises(Claimed):
        second.describe()
    clock.now += 1
    if status == "Running":
        with pytest.raises(Claimed):
            second.describe()
    else:
        second.describe()
        assert instance.tags[TAG].startswith("id-of-second ")


def test_without_the_right_to_tag_it_goes_on_and_reads_claims(fake: FakeEcs) -> None:
    instance = fake.cloud.add(start_seconds=0)
    clock = Clock()
    fake.fail("TagResources", "error", code="Forbidden.RAM", status=403, times=float("inf"))
    provider = of(fake, "second", clock)
    for _ in range(5):
        assert provider.describe().state is Observed.STOPPED
    assert fake.received["TagResources"] == 1
    clock.now += RETRY_SECONDS
    provider.describe()
    assert fake.received["TagResources"] == 2
    instance.tags = {TAG: Claim("id-of-first", "first/main", clock.now, clock.now).encode()}
    with pytest.raises(Claimed):
        provider.describe()


def test_of_two_that_claim_at_once_one_gives_in() -> None:
    clock = Clock()

    class Instance:
        call_timeout = observe_interval = 1.0
        tag = ""
        rival = True

        def describe(self) -> Observation:
            return Observation(Observed.STOPPED, "i-1", claim=self.tag)

        def start(self) -> Accepted:
            return Accepted()

        stop = start

        def claim(self, value: str) -> None:
            """The rival writes in the same moment, a little later."""
            self.tag = Claim("id-of-rival", "rival/main", clock.now, clock.now).encode()

    provider = ClaimedProvider(Instance(), "mine/main", lambda: "id-of-mine", clock)
    with pytest.raises(Claimed):
        provider.describe()
    with pytest.raises(Claimed):
        provider.start()


def test_what_is_no_claim_is_none(fake: FakeEcs) -> None:
    for text in ("", "x", "a b c d", "id name 1", "id name 1 2 3"):
        assert Claim.decode(text) is None
    claim = Claim("0123456789abcdef", "d" * 64 + "/" + "g" * 64, 1.8e9, 1.8e9)
    assert len(claim.encode()) <= 128


def test_the_id_is_shared_by_replicas_and_outlives_the_stores_data(
    client: redis.Redis, store: Store, deployment: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    found = deployment_id(store, one)
    assert deployment_id(store, other) == found
    client.delete(f"qwenctl:{{{deployment}}}:id")
    assert deployment_id(store, other) == found
    assert deployment_id(store, one) == found
    client.delete(f"qwenctl:{{{deployment}}}:id")
    assert deployment_id(store, tmp_path / "new") != found


def test_a_process_gives_the_id_back_to_a_store_that_has_lost_it(
    client: redis.Redis, store: Store, deployment: str, tmp_path: Path
) -> None:
    clock = Clock()
    known = cached_id(store, tmp_path / "lost", clock)
    found = known()
    (tmp_path / "lost" / FILE).unlink()
    client.delete(f"qwenctl:{{{deployment}}}:id")
    assert known() == found
    clock.now += AGAIN_SECONDS
    assert known() == found
    assert deployment_id(store, tmp_path / "new") == found


@pytest.mark.parametrize("status", ["Stopped", "Running"])
def test_a_deployment_that_has_lost_its_id_gets_its_instance_back(
    fake: FakeEcs, status: str
) -> None:
    """Store and state directory are gone: its own claim looks like another's of its name."""
    instance = fake.cloud.add()
    clock = Clock()
    of(fake, "first", clock).describe()
    instance.status = status
    again = of(fake, "first", clock, owner="a-new-id")
    other = of(fake, "second", clock)
    clock.now += ABANDONED_SECONDS - 1
    for deployment in (again, other):
        with pytest.raises(Claimed):
            deployment.describe()
    clock.now += 1
    with pytest.raises(Claimed):
        other.describe()
    again.describe()
    assert instance.tags[TAG].startswith("a-new-id ")


def deployed(fake: FakeEcs, directory: Path, name: str) -> Deployment:
    deployment = Deployment(
        directory / name,
        name=name,
        gpus={"main": table_of(fake)},
        env=key_in_environment(fake),
    )
    deployment.config.read_node_secret()
    return deployment


@pytest.mark.slow
def test_the_second_deployment_neither_adopts_starts_nor_stops(
    fake: FakeEcs, tmp_path: Path
) -> None:
    instance = fake.cloud.add(start_seconds=0.2, stop_seconds=0.2, private_ip="127.0.0.1")
    first, second = deployed(fake, tmp_path, "first"), deployed(fake, tmp_path, "second")
    try:
        put_agent(first, instance)
        first.start()
        first.store.pin("main", "pin:ada", 600, reason="", actor="ada")
        first.wait_phase(Phase.READY)
        # The second finds it running, with an idle timeout of 2 s.
        second.start()
        end = time.monotonic() + 12
        while time.monotonic() < end:
            assert second.store.snapshot("main").phase in (Phase.OFF, Phase.FAILED)
            assert (instance.starts, instance.stops) == (1, 0)
            time.sleep(0.2)
        assert second.proxies[0].wake().status_code in (200, 202)
        second.wait_phase(Phase.FAILED)

        def qwenctl(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [PROGRAM, *arguments, "--config", str(second.config_file)]
            env = {
                **inherited(),
                **key_in_environment(fake),
            }
            return subprocess.run(
                command, capture_output=True, text=True, timeout=90, env=env, check=False
            )

        whose = "belongs to another deployment, 'first' (gpu.main"
        assert whose in qwenctl("why").stdout
        assert whose in qwenctl("status").stdout
        assert json.loads(qwenctl("status", "--json").stdout)["gpus"]["main"]["failure"]
        assert whose in qwenctl("doctor").stdout
        up = qwenctl("up", "--timeout", "60")
        assert up.returncode == ExitCode.DENIED
        assert whose in up.stderr
        assert (instance.starts, instance.stops) == (1, 0)
        assert first.store.snapshot("main").phase is Phase.READY
    finally:
        first.close()
        second.close()


class Tagged:
    """An instance with a tag."""

    call_timeout = observe_interval = 1.0

    def __init__(self, name: str, tag: str = "") -> None:
        self.name, self.tag, self.state = name, tag, Observed.STOPPED

    def describe(self) -> Observation:
        return Observation(self.state, self.name, claim=self.tag)

    def start(self) -> Accepted:
        self.state = Observed.RUNNING
        return Accepted()

    def stop(self) -> Accepted:
        self.state = Observed.STOPPED
        return Accepted()

    def claim(self, value: str) -> None:
        self.tag = value


@pytest.mark.parametrize("state", [Observed.STOPPED, Observed.RUNNING])
def test_a_fallback_of_another_deployment_is_passed_over(state: Observed) -> None:
    now = time.time()
    own, foreign = Tagged("own"), Tagged("b", Claim("id-of-other", "other/main", now, now).encode())
    foreign.state = state
    chain = claiming(Fallback([("own", own), ("b", foreign)]), "mine/main", lambda: "id-of-mine")
    seen = chain.describe()
    assert seen.state is Observed.STOPPED
    assert "b belongs to another deployment, 'other'" in seen.reason
    chain.start()
    assert (own.state, chain.describe().state) == (Observed.RUNNING, Observed.RUNNING)
    assert not chain.describe().surplus
    chain.stop()
    assert (own.state, chain.describe().state) == (Observed.STOPPED, Observed.STOPPED)
    assert foreign.state is state
    own.tag = foreign.tag
    with pytest.raises(Claimed):
        chain.describe()


def test_the_serving_candidate_that_another_deployment_takes_over_is_not_replaced() -> None:
    now = time.time()
    own, serving = Tagged("own"), Tagged("b")
    serving.state = Observed.RUNNING
    chain = claiming(Fallback([("own", own), ("b", serving)]), "mine/main", lambda: "id-of-mine")
    assert chain.describe().instance_id == "b"
    serving.tag = Claim("id-of-other", "other/main", now, now).encode()
    for call in (chain.describe, chain.start):
        with pytest.raises(Claimed):
            call()
    assert own.state is Observed.STOPPED
