"""Each fault x each call: the right class, no call repeated that must not be, an end in time.

First the provider alone, then with the real store and the real controller, where what counts is
that the state machine ends right and that no second start is accepted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from qwenctl.clouds.aliyun.api import TRIES, Ecs
from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.core.phase import Observed, Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.store.store import Store
from tests.support.fake_ecs import FakeEcs, FakeInstance, Key
from tests.support.fake_ecs.client import config_for, credentials_of, provider_for
from tests.support.lookup import HOST, Lookup

PATIENT = {"connect_timeout": 5, "read_timeout": 20}
IMPATIENT = {"connect_timeout": 1, "read_timeout": 1.5}
"""For answers that never come. A call may take twice the sum, 5 s."""

SLACK = 10.0
"""Seconds that a busy machine may add."""

ERRORS: list[tuple[str, int, type[ProviderError]]] = [
    ("OperationDenied.NoStock", 403, NoCapacity),
    ("OperationDenied.SpotPriceLowerThanPublicPrice", 403, NoCapacity),
    ("Throttling.User", 400, Throttled),
    ("ServiceUnavailable", 503, Throttled),
    ("Forbidden.RAM", 403, Denied),
    ("InvalidAccountStatus.NotEnoughBalance", 400, Denied),
    ("QuotaExceed.ElasticQuota", 403, Denied),
    ("InvalidTimeStamp.Expired", 400, Denied),
    ("InvalidAccessKeyId.NotFound", 404, Denied),
    ("InvalidSecurityToken.Expired", 400, Denied),
    ("InvalidInstanceId.NotFound", 404, NotFound),
    ("InternalError", 500, Transient),
    ("Unheard.OfBefore", 400, ProviderError),
    ("Unheard.OfBefore", 502, Transient),
]


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs() as endpoint:
        yield endpoint


def lasting(kind: str) -> float:
    return 1 if kind == "once" else float("inf")


def aliyun_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "aliyun-call"}


def test_no_request_is_sent_when_its_name_lookup_outlasts_the_call(
    fake: FakeEcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.cloud.add()
    monkeypatch.setenv("NO_PROXY", "*")
    lookup = Lookup(monkeypatch)
    config = config_for(fake, endpoint=fake.endpoint.replace("127.0.0.1", HOST), **IMPATIENT)
    ecs = Ecs(config, credentials_of(fake.key))

    def start(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        ecs.call("StartInstance", "", deadline, InstanceId=config.instance_id)

    others = aliyun_threads()
    with pytest.raises(Transient, match="not answered in time"):
        start(3.0)
    assert lookup.began.is_set()
    lookup.go.set()
    for thread in aliyun_threads() - others:
        thread.join(60)
        assert not thread.is_alive()
    assert fake.received["StartInstance"] == 0
    start(30.0)
    assert fake.received["StartInstance"] == 1


# The provider alone: describe


@pytest.mark.parametrize("times", ["once", "always"])
@pytest.mark.parametrize(("code", "status", "error"), ERRORS)
def test_describe_is_refused(
    fake: FakeEcs, code: str, status: int, error: type[ProviderError], times: str
) -> None:
    fake.cloud.add()
    fake.fail("DescribeInstances", "error", code=code, status=status, times=lasting(times))
    provider = provider_for(fake, **PATIENT)
    calls = 1
    if error is NotFound:
        assert provider.describe().state is Observed.ABSENT
    elif error is Transient and times == "once":
        assert provider.describe().state is Observed.STOPPED
        calls = 2
    else:
        with pytest.raises(error) as caught:
            provider.describe()
        assert type(caught.value) is error
        assert caught.value.cloud_code == code
        assert caught.value.request_id
        calls = TRIES if error is Transient else 1
    assert fake.received["DescribeInstances"] == calls  # throttled: one call, no storm


@pytest.mark.parametrize("kind", ["cut_before", "cut_after", "garbage"])
def test_describe_outlasts_one_broken_answer(fake: FakeEcs, kind: Any) -> None:
    fake.cloud.add()
    fake.fail("DescribeInstances", kind, status=200)
    assert provider_for(fake, **PATIENT).describe().state is Observed.STOPPED
    assert fake.received["DescribeInstances"] == 2


def test_describe_gives_up_after_its_tries(fake: FakeEcs) -> None:
    fake.cloud.add()
    fake.fail("DescribeInstances", "cut_before", times=lasting("always"))
    with pytest.raises(Transient, match="was cut"):
        provider_for(fake, **PATIENT).describe()
    assert fake.received["DescribeInstances"] == TRIES  # the SDK does not add its own


@pytest.mark.parametrize("status", [200, 502, 503])
def test_an_answer_that_is_not_the_apis_is_transient(fake: FakeEcs, status: int) -> None:
    fake.cloud.add()
    fake.fail("DescribeInstances", "garbage", status=status, times=lasting("always"))
    with pytest.raises(Transient):
        provider_for(fake, **PATIENT).describe()
    assert fake.received["DescribeInstances"] == TRIES


# The provider alone: start and stop


def prepared(fake: FakeEcs, verb: str) -> FakeInstance:
    """The instance in the state in which the call makes sense."""
    status = "Stopped" if verb == "start" else "Running"
    return fake.cloud.add(status=status, start_seconds=60, stop_seconds=60)


def accepted(instance: FakeInstance, verb: str) -> int:
    return instance.starts if verb == "start" else instance.stops


VERBS = [("start", "StartInstance"), ("stop", "StopInstance")]


@pytest.mark.parametrize("times", ["once", "always"])
@pytest.mark.parametrize(("verb", "action"), VERBS)
@pytest.mark.parametrize(("code", "status", "error"), ERRORS)
def test_a_call_is_refused(
    fake: FakeEcs,
    code: str,
    status: int,
    error: type[ProviderError],
    verb: str,
    action: str,
    times: str,
) -> None:
    instance = prepared(fake, verb)
    fake.fail(action, "error", code=code, status=status, times=lasting(times))
    provider = provider_for(fake, **PATIENT)
    with pytest.raises(error) as caught:
        getattr(provider, verb)()
    assert type(caught.value) is error
    assert caught.value.cloud_code == code
    assert fake.received[action] == 1  # never repeated by itself
    assert accepted(instance, verb) == 0
    if times == "once":
        assert getattr(provider, verb)()
        assert accepted(instance, verb) == 1


@pytest.mark.parametrize(("verb", "action"), VERBS)
@pytest.mark.parametrize(("code", "status", "error"), ERRORS)
def test_nothing_is_done_blind(
    fake: FakeEcs, code: str, status: int, error: type[ProviderError], verb: str, action: str
) -> None:
    prepared(fake, verb)
    fake.fail("DescribeInstances", "error", code=code, status=status)
    with pytest.raises(error):
        getattr(provider_for(fake, **PATIENT), verb)()
    assert fake.received[action] == 0


@pytest.mark.parametrize(("verb", "action"), VERBS)
@pytest.mark.parametrize("kind", ["cut_after", "garbage"])
def test_a_call_that_was_accepted_unseen_is_not_repeated(
    fake: FakeEcs, verb: str, action: str, kind: Any
) -> None:
    instance = prepared(fake, verb)
    fake.fail(action, kind, status=200)
    provider = provider_for(fake, **PATIENT)
    with pytest.raises(Transient):
        getattr(provider, verb)()
    assert (fake.received[action], accepted(instance, verb)) == (1, 1)
    assert getattr(provider, verb)().request_id == ""  # it is under way: nothing to do
    assert (fake.received[action], accepted(instance, verb)) == (1, 1)


@pytest.mark.parametrize(("verb", "action"), VERBS)
def test_a_call_that_was_cut_before_can_be_made_anew(fake: FakeEcs, verb: str, action: str) -> None:
    instance = prepared(fake, verb)
    fake.fail(action, "cut_before")
    provider = provider_for(fake, **PATIENT)
    with pytest.raises(Transient):
        getattr(provider, verb)()
    assert (fake.received[action], accepted(instance, verb)) == (1, 0)
    assert getattr(provider, verb)()
    assert accepted(instance, verb) == 1


@pytest.mark.parametrize(("verb", "action"), VERBS)
def test_a_wrong_state_by_somebody_elses_call_is_success(
    fake: FakeEcs, verb: str, action: str
) -> None:
    """The state changes between our look and our call."""
    instance = prepared(fake, verb)
    other = "Starting" if verb == "start" else "Stopping"
    provider = provider_for(fake, **PATIENT)
    look = provider._read

    def look_then_change(deadline: float) -> Any:
        seen = look(deadline)
        instance.status = other
        return seen

    provider._read = look_then_change  # type: ignore[method-assign]
    assert getattr(provider, verb)().request_id == ""
    assert (fake.received[action], accepted(instance, verb)) == (1, 0)


@pytest.mark.parametrize(("verb", "action"), VERBS)
def test_a_wrong_state_that_stays_is_conflict(fake: FakeEcs, verb: str, action: str) -> None:
    prepared(fake, verb)
    fake.fail(action, "error", code="IncorrectInstanceStatus", status=403)
    with pytest.raises(Conflict):
        getattr(provider_for(fake, **PATIENT), verb)()
    assert fake.received[action] == 1


# The provider alone: time


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slow", "trickle"])
@pytest.mark.parametrize("action", ["DescribeInstances", "StartInstance", "StopInstance"])
def test_no_call_lasts_longer_than_its_bound(fake: FakeEcs, action: str, kind: Any) -> None:
    verb = "start" if action == "StartInstance" else "stop"
    instance = prepared(fake, verb)
    # Byte by byte, 1 s apart: every single read is in time, the whole would take minutes.
    seconds = 60.0 if kind == "slow" else 1.0
    fake.fail(action, kind, times=lasting("always"), seconds=seconds)
    provider = provider_for(fake, **IMPATIENT)
    calls = [provider.describe, getattr(provider, verb)]
    for call in calls if action == "DescribeInstances" else calls[1:]:
        began = time.monotonic()
        with pytest.raises(Transient, match="has not answered in time"):
            call()
        assert time.monotonic() - began < provider.call_timeout + SLACK
    expected = 0 if action == "DescribeInstances" else 1
    assert accepted(instance, verb) == expected


def test_credentials_that_never_come_do_not_hold_the_call(fake: FakeEcs) -> None:
    fake.cloud.add()
    provider = provider_for(fake, **IMPATIENT)
    release = threading.Event()

    class Stuck:
        def get_credentials(self) -> Any:
            release.wait(60)
            raise RuntimeError

    provider._ecs._credentials = Stuck()
    began = time.monotonic()
    with pytest.raises(Transient):
        provider.start()
    assert time.monotonic() - began < provider.call_timeout + SLACK
    release.set()
    assert not fake.received


def test_an_endpoint_that_nobody_listens_on(fake: FakeEcs) -> None:
    provider = provider_for(fake, **PATIENT, endpoint="127.0.0.1:1")
    for call in (provider.describe, provider.start, provider.stop):
        with pytest.raises(Transient, match=r"127\.0\.0\.1:1 cannot be reached: .* refused"):
            call()


# Secrets


@pytest.mark.parametrize("debug", ["", "sdk"])
def test_no_secret_in_errors_or_logs(
    fake: FakeEcs,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    debug: str,
) -> None:
    monkeypatch.setenv("DEBUG", debug)  # "sdk" makes the SDK print requests
    caplog.set_level(logging.DEBUG)
    fake.cloud.add()
    wrong = Key(fake.key.id, "a-wrong-secret")
    texts = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            texts.append(repr(call()))
        except ProviderError as error:
            chain: BaseException | None = error
            while chain is not None:
                texts.append(f"{chain} {chain!r} {vars(chain)}")
                chain = None if chain.__suppress_context__ else chain.__context__ or chain.__cause__

    for key, endpoint in (
        (fake.key, fake.endpoint),
        (fake.key, "127.0.0.1:1"),
        (wrong, fake.endpoint),
    ):
        provider = provider_for(fake, key=key, endpoint=endpoint, **PATIENT)
        for call in (provider.describe, provider.start, provider.stop):
            attempt(call)
    signed = ""
    for kind, more in (
        ("cut_after", {}),
        ("garbage", {"status": 500}),
        ("error", {"code": "New.Code", "message": f"AccessKeyId={fake.key.id}&Signature=abc"}),
    ):
        fake.fail("DescribeInstances", kind, times=TRIES, **more)  # type: ignore[arg-type]
        attempt(provider_for(fake, **PATIENT).describe)
        fake.heal()
    everything = " ".join([*texts, caplog.text, *capfd.readouterr()])
    signed = fake.calls[-1]["Signature"]
    assert len(texts) >= 12
    for secret in (fake.key.id, fake.key.secret, wrong.secret, signed, "Signature="):
        assert secret not in everything.replace("Signature=…", "")
    assert "AccessKey" in everything  # that the key is wrong has been said


# With the store and the controller


class Loop:
    """A controller in a thread, on a store in real time."""

    def __init__(self, fake: FakeEcs, store: Store) -> None:
        self.fake = fake
        self.store = store
        gpu = GpuConfig.model_validate(
            {
                "provider": "aliyun",
                "idle_timeout": 1,
                "timing": {"drain": 3, "call_grace": 1.5, "retry": 0.5, "retry_max": 1},
            }
        )
        # Time to answer for a busy machine; where the answer is to be late, the test says so.
        self.provider = provider_for(fake, **PATIENT)
        self.provider.observe_interval = 0.2
        self.gpu = gpu

    def __enter__(self) -> Loop:
        self._stop = threading.Event()
        controller = Controller("main", self.gpu, self.store, self.provider)
        self._thread = threading.Thread(target=controller.run, args=(self._stop,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def want(self) -> None:
        self.store.pin("main", "pin:test", 600, reason="test", actor="test")

    def want_no_more(self) -> None:
        self.store.release("main", actor="test")

    def wait(self, what: Callable[[Snapshot], object], timeout: float = 45.0) -> Snapshot:
        deadline = time.monotonic() + timeout
        while not what(snapshot := self.store.snapshot("main")):
            assert time.monotonic() < deadline, (snapshot.phase, snapshot.failure, self.history())
            time.sleep(0.05)
        return snapshot

    def wait_phase(self, phase: Phase) -> Snapshot:
        return self.wait(lambda snapshot: snapshot.phase is phase)

    def history(self) -> list[tuple[str, dict[str, str]]]:
        return [(event.kind, event.fields) for event in self.store.events("main", 40)]


@pytest.fixture
def loop(fake: FakeEcs, client: redis.Redis, deployment: str) -> Loop:
    return Loop(fake, Store(client, deployment))


STARTS_ANYWAY: list[dict[str, Any]] = [
    {"action": "StartInstance", "kind": "cut_after"},
    {"action": "StartInstance", "kind": "garbage", "status": 200},
    {"action": "StartInstance", "kind": "cut_before"},
    {"action": "StartInstance", "kind": "error", "code": "InternalError", "status": 500},
    {"action": "StartInstance", "kind": "error", "code": "OperationDenied.NoStock", "times": 2},
    {"action": "StartInstance", "kind": "error", "code": "Throttling.User", "times": 2},
    {"action": "StartInstance", "kind": "error", "code": "IncorrectInstanceStatus", "times": 2},
    {"action": "DescribeInstances", "kind": "cut_after", "times": 4},
    {"action": "DescribeInstances", "kind": "error", "code": "Throttling", "times": 3},
    {"action": "DescribeInstances", "kind": "garbage", "status": 503, "times": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", STARTS_ANYWAY, ids=lambda f: f"{f['action']}-{f.get('code') or f['kind']}"
)
def test_a_wake_comes_through_with_one_start(loop: Loop, fault: dict[str, Any]) -> None:
    instance = loop.fake.cloud.add(start_seconds=0.5, stop_seconds=0.2)
    loop.fake.fail(**fault)
    with loop:
        loop.want()
        loop.wait_phase(Phase.BOOTING)
        assert instance.starts == 1
        loop.want_no_more()
        loop.wait_phase(Phase.OFF)
    assert (instance.starts, instance.stops) == (1, 1)
    assert instance.stopped_mode == "StopCharging"


@pytest.mark.slow
def test_a_start_that_timed_out_but_succeeded_is_adopted(loop: Loop) -> None:
    instance = loop.fake.cloud.add(start_seconds=0.5, stop_seconds=0.2)
    loop.fake.fail("StartInstance", "slow", seconds=60)
    loop.provider = provider_for(loop.fake, **IMPATIENT)
    loop.provider.observe_interval = 0.2
    with loop:
        loop.want()
        loop.wait_phase(Phase.BOOTING)
        loop.want_no_more()
        loop.wait_phase(Phase.OFF)
    assert loop.fake.received["StartInstance"] == 1
    assert (instance.starts, instance.stops) == (1, 1)
    calls = [fields for kind, fields in loop.history() if kind == "call"]
    assert "answered in time" in calls[0]["error"]


STOPS_ANYWAY: list[dict[str, Any]] = [
    {"kind": "cut_after"},
    {"kind": "cut_before"},
    {"kind": "garbage", "status": 200},
    {"kind": "error", "code": "InternalError", "status": 500},
    {"kind": "error", "code": "Throttling.User"},
    {"kind": "error", "code": "Forbidden.RAM"},
    {"kind": "error", "code": "IncorrectInstanceStatus"},
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", STOPS_ANYWAY, ids=lambda f: str(f.get("code") or f["kind"]))
def test_a_stop_comes_through_and_ends_the_billing(loop: Loop, fault: dict[str, Any]) -> None:
    instance = loop.fake.cloud.add(status="Running", stop_seconds=0.2)
    loop.fake.fail("StopInstance", **fault)
    with loop:  # found running: adopted for one idle timeout
        loop.wait(lambda snapshot: instance.stopped_mode == "StopCharging")
        loop.wait_phase(Phase.OFF)
    assert (instance.starts, instance.stops) == (0, 1)
    assert {call["StoppedMode"] for call in loop.fake.calls_of("StopInstance")} == {"StopCharging"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("OperationDenied.NoStock", "no_capacity"),
        ("Forbidden.RAM", "denied"),
        ("InvalidAccountStatus.NotEnoughBalance", "denied"),
        ("Throttling.User", "throttled"),
        ("Unheard.Of", "provider_error"),
    ],
)
def test_a_start_that_stays_refused_is_a_failure_with_a_reason(
    loop: Loop, code: str, failure: str
) -> None:
    instance = loop.fake.cloud.add(start_seconds=0.2, stop_seconds=0.2)
    loop.fake.fail("StartInstance", "error", code=code, status=403, times=lasting("always"))
    with loop:
        loop.want()
        snapshot = loop.wait(lambda s: s.failure is not None and s.failure.attempts >= 2)
        assert snapshot.failure is not None
        assert snapshot.failure.code == failure
        assert code in snapshot.failure.message
        loop.fake.heal()
        loop.wait_phase(Phase.BOOTING)
        loop.want_no_more()
        loop.wait_phase(Phase.OFF)
    assert (instance.starts, instance.stops) == (1, 1)


def test_a_spot_instance_reclaimed_in_its_boot_is_explained(loop: Loop) -> None:
    instance = loop.fake.cloud.add(start_seconds=0.2, spot_strategy="SpotAsPriceGo")
    with loop:
        loop.want()
        loop.wait_phase(Phase.BOOTING)
        instance.in_stock = False
        instance.locks.append("Recycling")
        instance.status, instance.stopped_mode = "Stopped", "StopCharging"
        snapshot = loop.wait(lambda s: s.failure is not None)
        assert snapshot.failure is not None
        assert "reclaiming this spot instance" in snapshot.failure.message
    with contextlib.suppress(ProviderError):
        loop.provider.stop()
    assert instance.starts == 1
