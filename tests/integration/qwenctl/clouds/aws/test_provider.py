"""The AWS provider with boto3 over HTTP: moto's server, and a proxy that makes calls go wrong."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from qwenctl.clouds.aws import api as aws
from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    Observation,
    Provider,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.core.phase import Observed
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.lookup import HOST, Lookup
from tests.support.moto_cloud import CREDENTIALS, REGION, MotoCloud
from tests.support.net import free_ports
from tests.unit.qwenctl.clouds.contract import ProviderContract, wait_for

VERBS = ("describe", "start", "stop")
ACTION = {"describe": "DescribeInstances", "start": "StartInstances", "stop": "StopInstances"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoCloud]:
    with MotoCloud(tmp_path_factory.mktemp("moto") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def client(cloud: MotoCloud) -> Any:
    return cloud.client()


@pytest.fixture(scope="module")
def proxy(cloud: MotoCloud) -> Iterator[FaultProxy]:
    with FaultProxy(cloud.url) as proxy:
        yield proxy


@pytest.fixture
def faults(proxy: FaultProxy) -> FaultProxy:
    """Nothing wrong yet, and nothing called."""
    proxy.forget()
    return proxy


@pytest.fixture(scope="module")
def account(proxy: FaultProxy) -> Account:
    """One for most tests: its client takes a while to build."""
    return Account(AwsConfig(region=REGION, endpoint_url=proxy.url))


@pytest.fixture(autouse=True)
def environment(cloud: MotoCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    cloud.set(pending=0.0, stopping=0.0, no_capacity=0)


Make = Callable[..., AwsProvider]


@pytest.fixture
def make(cloud: MotoCloud, client: Any, faults: FaultProxy, account: Account) -> Make:
    """A provider of a new instance, behind the fault proxy; with settings: of a new account."""

    def new(state: str = "stopped", *, instance: str = "", **settings: Any) -> AwsProvider:
        own = {"region": REGION, "endpoint_url": faults.url, **settings}
        instance = instance or cloud.new_instance(client, state=state, PrivateIpAddress="127.0.0.1")
        provider = AwsProvider(Account(AwsConfig(**own)) if settings else account, instance)
        provider.observe_interval = 0.1
        return provider

    return new


class TestContract(ProviderContract):
    timeout = 30.0

    @pytest.fixture
    def provider(self, make: Make, cloud: MotoCloud) -> Provider:
        cloud.set(pending=1.5, stopping=1.5)
        self.cloud = cloud
        return make()

    def count_starts(self, provider: Provider) -> int:
        assert isinstance(provider, AwsProvider)
        return self.cloud.journal(provider.instance_id, "start")

    def count_stops(self, provider: Provider) -> int:
        assert isinstance(provider, AwsProvider)
        return self.cloud.journal(provider.instance_id, "stop")


# What it asks


def test_each_call_is_one_request(make: Make, faults: FaultProxy) -> None:
    provider = make()
    provider.describe()
    provider.start()
    wait_for(provider, Observed.RUNNING)
    provider.stop()
    assert {call.status for call in faults.calls()} == {200}
    for action in ("StartInstances", "StopInstances"):
        assert len(faults.calls(action)) == 1


def test_many_instances_are_described_by_few_requests(
    make: Make, client: Any, cloud: MotoCloud, faults: FaultProxy
) -> None:
    provider = make("running")
    ids = [provider.instance_id, *(f"i-{number:017x}" for number in range(1, 150))]
    found = provider.account.describe(ids)
    assert set(found) == {provider.instance_id}
    assert len(faults.calls()) == 2
    assert provider.account.describe([]) == {}


def test_an_instance_that_ec2_does_not_know_is_absent(make: Make) -> None:
    provider = make(instance="i-00000000000000000")
    assert provider.describe().state is Observed.ABSENT
    for call in (provider.start, provider.stop):
        with pytest.raises(NotFound, match=r"no instance i-00000000000000000 in us-east-1"):
            call()


def test_a_terminated_instance_is_absent(make: Make, client: Any) -> None:
    provider = make()
    client.terminate_instances(InstanceIds=[provider.instance_id])
    seen = provider.describe()
    assert seen.state is Observed.ABSENT
    assert "terminated" in seen.reason
    with pytest.raises(Conflict):
        provider.start()


def test_the_dry_run_changes_nothing(make: Make, cloud: MotoCloud, faults: FaultProxy) -> None:
    provider = make()
    for verb in ("start", "stop"):
        provider.account.dry_run(verb, provider.instance_id)
        assert cloud.journal(provider.instance_id, verb) == 0
    faults.add(Fault.error(ec2_error("UnauthorizedOperation", status=403)))
    with pytest.raises(Denied):
        provider.account.dry_run("start", provider.instance_id)


def test_what_a_shutdown_from_inside_does_can_be_asked(
    make: Make, cloud: MotoCloud, client: Any
) -> None:
    for behavior in ("terminate", "stop"):
        made = cloud.new_instance(client, InstanceInitiatedShutdownBehavior=behavior)
        provider = make(instance=made)
        assert provider.account.shutdown_behavior(provider.instance_id) == behavior


def test_a_start_that_finds_no_machine_later_says_so(make: Make, cloud: MotoCloud) -> None:
    cloud.set(no_capacity=1)
    provider = make()
    provider.start()
    deadline = time.monotonic() + 20
    while "no such machine free" not in (seen := provider.describe()).reason:
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    assert seen.state is Observed.STOPPED
    assert "Server.InsufficientInstanceCapacity" in seen.reason


def test_stop_protection_is_explained(make: Make, client: Any) -> None:
    provider = make("running")
    client.modify_instance_attribute(
        InstanceId=provider.instance_id, DisableApiStop={"Value": True}
    )
    with pytest.raises(Denied, match="stop protection"):
        provider.stop()


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("Server.SpotInstanceShutdown", NoCapacity, "has taken the spot instance back"),
        ("Client.UserInitiatedShutdown", Conflict, "must be persistent"),
    ],
)
def test_a_spot_instance_that_cannot_start_says_why(
    make: Make, cloud: MotoCloud, faults: FaultProxy, code: str, kind: type, says: str
) -> None:
    provider = make()
    cloud.happen(provider.instance_id, "stopped", code)
    faults.add(Fault.error(ec2_error("IncorrectSpotRequestState"), "StartInstances"))
    with pytest.raises(kind, match=says) as caught:
        provider.start()
    assert caught.value.cloud_code == "IncorrectSpotRequestState"
    assert len(faults.calls("StartInstances")) == 1


# What goes wrong

EC2_ERRORS: dict[str, tuple[int, type[ProviderError]]] = {
    "InsufficientInstanceCapacity": (500, NoCapacity),
    "Unsupported": (400, NoCapacity),
    "IncorrectInstanceState": (400, Conflict),
    "RequestLimitExceeded": (503, Throttled),
    "UnauthorizedOperation": (403, Denied),
    "AuthFailure": (401, Denied),
    "ExpiredToken": (400, Denied),
    "PendingVerification": (400, Denied),
    "VcpuLimitExceeded": (400, Denied),
    "UnsupportedOperation": (400, Denied),
    "InvalidInstanceID.NotFound": (400, NotFound),
    "InternalError": (500, Transient),
    "Unavailable": (503, Transient),
    "NeverHeardOf": (400, ProviderError),
}

FAULTS: dict[str, tuple[Fault, type[ProviderError]]] = {
    **{
        code: (Fault.error(ec2_error(code, f"about {code}", status, request_id="r-1")), kind)
        for code, (status, kind) in EC2_ERRORS.items()
    },
    "cut before": (Fault.cut_before(), Transient),
    "cut after": (Fault.cut_after(), Transient),
    "garbage": (Fault.garbage(), Transient),
    "half an answer": (Fault.dripping(0.4), Transient),
    "no error code": (Fault.unavailable(), Transient),
}


def without_secrets(*texts: str) -> None:
    for text in texts:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            assert CREDENTIALS[name] not in text
        assert "Signature=" not in text


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_in_each_call(
    name: str,
    verb: str,
    times: int | None,
    make: Make,
    cloud: MotoCloud,
    faults: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    provider = make("running" if verb == "stop" else "stopped")
    provider.describe()  # the client is built
    faults.forget()
    # Three seconds for further tries of a describe, or more, where one is enough.
    monkeypatch.setattr(provider.account, "call_timeout", 18.0 if times is None else 25.0)
    fault, kind = FAULTS[name]
    faults.add(Fault(**{**vars(fault), "action": ACTION[verb], "times": times}))
    call = getattr(provider, verb)

    if verb == "describe" and kind is Transient and times == 1:
        assert call().state is Observed.STOPPED  # tried again at once
        assert len(faults.calls()) == 2
    else:
        with pytest.raises(ProviderError) as caught:
            call()
        assert type(caught.value) is kind
        without_secrets(str(caught.value), repr(caught.value), caplog.text)
        assert "\n" not in str(caught.value)
        if name in EC2_ERRORS:
            assert (caught.value.cloud_code, caught.value.request_id) == (name, "r-1")
        if verb != "describe" or kind is not Transient:
            assert len(faults.calls()) == 1, "it was sent more than once"

    # The next call finds the instance as it is: what was accepted was accepted once.
    faults.heal()
    if verb != "describe":
        call()
        assert cloud.journal(provider.instance_id, verb) == 1
    wanted = {"describe": "stopped", "start": "running", "stop": "stopped"}[verb]
    wait_for(provider, Observed(wanted), 20)


@pytest.mark.parametrize("times", [1, None], ids=["once", "always"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_slow_answer_is_not_waited_for(
    verb: str, times: int | None, make: Make, cloud: MotoCloud, faults: FaultProxy
) -> None:
    provider = make("running" if verb == "stop" else "stopped", read_timeout=1)
    assert provider.call_timeout == 11.0
    wait_for(provider, Observed.RUNNING if verb == "stop" else Observed.STOPPED)
    faults.forget()
    faults.add(Fault.slow(60, ACTION[verb], times))
    if verb == "describe" and times == 1:
        assert provider.describe().state is Observed.STOPPED
        return
    with pytest.raises(Transient, match=r"EC2 at 127\.0\.0\.1 did not answer in time"):
        getattr(provider, verb)()
    faults.heal()
    if verb != "describe":
        getattr(provider, verb)()
        assert cloud.journal(provider.instance_id, verb) == 1


def ec2_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ec2"]


@pytest.mark.parametrize("verb", VERBS)
def test_an_answer_that_drips_does_not_hold_the_caller(
    verb: str, make: Make, faults: FaultProxy
) -> None:
    provider = make(connect_timeout=0.5, read_timeout=0.5)
    faults.add(Fault.dripping(20, ACTION[verb]))
    began = time.monotonic()
    with pytest.raises(Transient, match=r"has not answered within 6 s; .* may have been accepted"):
        getattr(provider, verb)()
    assert time.monotonic() - began < 30


def test_a_request_is_not_sent_after_its_time(
    make: Make, faults: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "SETUP_SECONDS", 1.0)
    for variable in CREDENTIALS:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    keys = {"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "secret"}
    program = tmp_path / "credentials.py"
    program.write_text(f"import time; time.sleep(5); print({json.dumps(json.dumps(keys))})")
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    provider = make(connect_timeout=0.5, read_timeout=0.5)
    others = ec2_threads()
    with pytest.raises(Transient):
        provider.start()
    for thread in set(ec2_threads()) - set(others):
        thread.join(60)
    assert faults.calls("StartInstances") == []
    # By now the credentials are there.
    monkeypatch.setattr(provider.account, "call_timeout", 30.0)
    provider.start()
    assert faults.accepted("StartInstances") == 1


def test_a_request_is_not_sent_when_its_name_lookup_outlasts_the_call(
    make: Make, faults: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "SETUP_SECONDS", 1.0)
    monkeypatch.setenv("NO_PROXY", "*")
    lookup = Lookup(monkeypatch)
    url = faults.url.replace("127.0.0.1", HOST)
    provider = make(endpoint_url=url, connect_timeout=0.5, read_timeout=0.5)
    provider.account.call("", lambda client: None)  # builds the client, which takes a while
    others = ec2_threads()
    with pytest.raises(Transient, match="has not answered within"):
        provider.start()
    assert lookup.began.is_set()
    lookup.go.set()
    for thread in set(ec2_threads()) - set(others):
        thread.join(60)
        assert not thread.is_alive()
    assert faults.calls("StartInstances") == []
    monkeypatch.setattr(provider.account, "call_timeout", 30.0)
    provider.start()
    assert faults.accepted("StartInstances") == 1


def test_an_endpoint_that_nobody_serves_is_named(make: Make) -> None:
    provider = make(endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
    for verb in VERBS:
        with pytest.raises(Transient, match=r"cannot connect to EC2 at 127\.0\.0\.1; check"):
            getattr(provider, verb)()


def test_an_endpoint_without_tls_is_no_secure_one(make: Make, cloud: MotoCloud) -> None:
    provider = make(endpoint_url=cloud.url.replace("http:", "https:"))
    with pytest.raises(Transient, match=r"secure connection to EC2 at 127\.0\.0\.1 failed"):
        provider.start()


def test_no_part_of_an_endpoints_url_but_its_host_is_shown(make: Make) -> None:
    port = free_ports(1)[0]
    provider = make(endpoint_url=f"http://ada:pass-word@127.0.0.1:{port}/?token=to-ken")
    with pytest.raises(ProviderError) as caught:
        provider.start()
    assert "pass-word" not in str(caught.value)
    assert "to-ken" not in str(caught.value)


def test_a_signature_that_does_not_match_shows_no_part_of_the_request(
    make: Make, faults: FaultProxy
) -> None:
    signed = f"POST\n/\nx-amz-security-token:{CREDENTIALS['AWS_SESSION_TOKEN']}"
    faults.add(Fault.error(ec2_error("SignatureDoesNotMatch", f"should have been '{signed}'", 403)))
    with pytest.raises(Denied, match="does not accept these credentials") as caught:
        make().start()
    without_secrets(str(caught.value))


def test_a_clock_that_is_wrong_is_blamed(make: Make, faults: FaultProxy) -> None:
    date = formatdate(time.time() + 3600, usegmt=True)
    faults.add(Fault.error(ec2_error("AuthFailure", status=401, date=date)))
    with pytest.raises(Denied, match="clock is 60 minutes slow"):
        make().describe()


class TestCredentials:
    """Found by boto3's own chain; what is missing is named."""

    @pytest.fixture
    def account(self, proxy: FaultProxy) -> Account:
        return Account(AwsConfig(region=REGION, endpoint_url=proxy.url))

    @pytest.fixture(autouse=True)
    def nothing(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(variable)

    def test_none(self, make: Make, faults: FaultProxy) -> None:
        for verb in VERBS:
            with pytest.raises(Denied, match=r"no AWS credentials.*set AWS_ACCESS_KEY_ID and"):
                getattr(make(), verb)()
        assert faults.calls() == []

    def test_half(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS["AWS_ACCESS_KEY_ID"])
        with pytest.raises(Denied, match="credentials are incomplete") as caught:
            make().describe()
        without_secrets(str(caught.value))

    def test_a_profile_that_is_not_there(self, make: Make) -> None:
        with pytest.raises(Denied, match=r"no such profile.*aws\.profile"):
            make(profile="work").describe()

    def test_a_profile(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faults: FaultProxy
    ) -> None:
        file = tmp_path / "credentials"
        file.write_text("[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = secret\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        assert make(profile="work").describe().state is Observed.STOPPED

    def test_a_file_that_cannot_be_read_as_one(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "config"
        file.write_text("aws_secret_access_key without a section\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        with pytest.raises(Denied, match="configuration files cannot be used"):
            make().describe()

    def test_a_program_that_fails(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "config"
        file.write_text(
            "[default]\ncredential_process = /bin/sh -c 'echo top-secret >&2; exit 1'\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        with pytest.raises(Denied, match="could not be fetched") as caught:
            make().describe()
        assert "top-secret" not in str(caught.value)

    def test_no_region(self, make: Make) -> None:
        with pytest.raises(Denied, match=r"set aws\.region"):
            make(region="", endpoint_url="").describe()


def test_it_is_seen_as_its_owner_would_see_it(make: Make, cloud: MotoCloud) -> None:
    """The observation of a life, from one stop to the next."""
    provider = make()
    assert provider.describe() == Observation(
        Observed.STOPPED,
        provider.instance_id,
        "",
        "it was stopped by a call of the EC2 API (Client.UserInitiatedShutdown)",
    )
    provider.start()
    running = wait_for(provider, Observed.RUNNING, 20)
    assert running == Observation(Observed.RUNNING, provider.instance_id, "127.0.0.1", "")
    cloud.happen(provider.instance_id, "stopped", "Client.InstanceInitiatedShutdown")
    assert "its own operating system shut it down" in provider.describe().reason
