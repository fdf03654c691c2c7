"""Answers that no cloud gives, of web proxies, captive portals and broken servers: nothing is known.

An instance must never be taken for stopped or gone because of them, and what is said of them holds
no secret.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qwenctl.clouds.aliyun import api as aliyun
from qwenctl.clouds.aliyun.provider import AliyunProvider
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import Accepted, Observation, Provider, ProviderError, Transient
from qwenctl.clouds.deadline import MAX_ANSWER
from qwenctl.core.phase import Observed
from tests.support.fake_ecs import Key
from tests.support.fake_ecs.client import credentials_of
from tests.support.faults import Answered, Fault, FaultProxy
from tests.support.moto_cloud import CREDENTIALS, REGION

ID = "i-0123456789abcdef0"
KEY = Key("LTAI5tABCDEFGHIJKLMN", "a-secret-of-thirty-characters-x")

HTML = {"Content-Type": "text/html"}
XML = {"Content-Type": "text/xml"}
JSON = {"Content-Type": "application/json"}


def page(status: int) -> Answered:
    return Answered(status, f"<html><body><h1>{status}</h1><br></body></html>".encode(), HTML)


def elsewhere(status: int) -> Answered:
    return Answered(status, b"", {"Location": "http://127.0.0.1:1/?X-Amz-Signature=abc"})


ODD = {
    **{f"a page, {status}": page(status) for status in (200, 403, 404, 407, 500, 502)},
    **{f"empty, {status}": Answered(status) for status in (200, 204, 403, 503)},
    **{f"redirect, {status}": elsewhere(status) for status in (301, 302, 307)},
    "binary": Answered(200, bytes(range(256))),
    "no gzip": Answered(200, b"no gzip", {"Content-Encoding": "gzip"}),
    "very long": Answered(200, b"<a>" + b"x" * (MAX_ANSWER + 1)),
    "very deep": Answered(200, b"[" * 100_000),
}


def ec2(content: str) -> Answered:
    body = (
        '<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<requestId>r-1</requestId>{content}</DescribeInstancesResponse>"
    )
    return Answered(200, body.encode(), XML)


def ec2_instance(state: str = "<name>running</name>", id_: str = ID, more: str = "") -> str:
    return (
        f"<item><instancesSet><item><instanceId>{id_}</instanceId><instanceState>{state}"
        f"</instanceState>{more}</item></instancesSet></item>"
    )


def ec2_set(*instances: str, more: str = "") -> Answered:
    return ec2(f"<reservationSet>{''.join(instances)}</reservationSet>{more}")


def ec2_error(content: str) -> Answered:
    return Answered(400, f"<Response><Errors><Error>{content}</Error></Errors></Response>".encode())


EC2_ODD = {
    **ODD,
    "half": Answered(200, ec2_set(ec2_instance()).body[:200], XML),
    "json": Answered(200, b'{"Reservations": []}', JSON),
    "nothing": ec2(""),
    "another action's": ec2("<startingInstancesSet/>"),
    "no request id": Answered(200, b"<r><reservationSet/></r>", XML),
    "twice": ec2_set(ec2_instance(), ec2_instance("<name>stopped</name>")),
    "another instance": ec2_set(ec2_instance(id_="i-0aaaaaaaaaaaaaaaa")),
    "no id": ec2_set("<item><instancesSet><item/></instancesSet></item>"),
    "an empty reservation": ec2_set("<item><instancesSet/></item>"),
    "text for a reservation": ec2_set("<item>text</item>"),
    "an unknown state": ec2_set(ec2_instance("<name>melting</name>")),
    "no state": ec2_set(ec2_instance("")),
    "a state's code that is no number": ec2_set(ec2_instance("<code>x</code>")),
    "a date that is none": ec2_set(ec2_instance(more="<launchTime>yesterday</launchTime>")),
    "the same page for ever": ec2_set(ec2_instance(), more="<nextToken>x</nextToken>"),
    "an error without code": ec2_error(""),
    "an error with a structure for a code": ec2_error("<Code><a>b</a></Code>"),
}


def ecs(*instances: object, **more: object) -> Answered:
    answer = {"RequestId": "R", "Instances": {"Instance": list(instances)}, **more}
    return Answered(200, json.dumps(answer).encode(), JSON)


def ecs_instance(**changes: object) -> dict[str, object]:
    address = {"PrivateIpAddress": {"IpAddress": ["192.0.2.7"]}}
    return {"InstanceId": ID, "Status": "Running", "VpcAttributes": address, **changes}


def as_json(value: object, status: int = 200) -> Answered:
    return Answered(status, json.dumps(value).encode(), JSON)


ECS_ODD = {
    **ODD,
    "half": Answered(200, ecs(ecs_instance()).body[:60], JSON),
    "xml": Answered(200, ec2_set().body, XML),
    **{f"{value}": as_json(value) for value in ([], "text", None, 5, {})},
    "no request id": as_json({"Instances": {"Instance": []}}),
    "an error with status 200": as_json({"RequestId": "R", "Code": "Forbidden.RAM"}),
    "a list for the answer": as_json([], 400),
    "null for the error": as_json(None, 403),
    **{f"instances: {value}": ecs(Instances=value) for value in ([], None, {})},
    **{
        f"instance: {value}": ecs(Instances={"Instance": value}) for value in (None, {}, "", "x", 5)
    },
    **{f"entry: {value}": ecs(value) for value in ("x", None, [], {})},
    **{f"status: {value}": ecs(ecs_instance(Status=value)) for value in (None, [], {}, 5)},
    **{f"id: {value}": ecs(ecs_instance(InstanceId=value)) for value in (None, [1], 5, "i-x")},
    "fewer than it counts": ecs(TotalCount=1),
    "twice": ecs(ecs_instance(), ecs_instance(Status="Stopped")),
    "an unknown state": ecs(ecs_instance(Status="Melting\x1b[31m")),
    "locks that are none": ecs(ecs_instance(OperationLocks={"LockReason": 5})),
}


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        yield proxy


@pytest.fixture
def faults(proxy: FaultProxy) -> FaultProxy:
    proxy.forget()
    return proxy


@pytest.fixture(scope="module")
def account(proxy: FaultProxy) -> Account:
    return Account(AwsConfig(region=REGION, endpoint_url=proxy.url))


@pytest.fixture
def aws(account: Account, monkeypatch: pytest.MonkeyPatch) -> Provider:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(account, "call_timeout", 120.0)
    # It is not tried again, which takes time.
    monkeypatch.setattr(account, "_time_for_request", lambda pause=0.0: not pause)
    return AwsProvider(account, ID)


@pytest.fixture
def alibaba(faults: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Provider:
    monkeypatch.setattr(aliyun, "TRIES", 1)
    config = AliyunConfig(
        region="cn-hangzhou",
        instance_id=ID,
        endpoint=faults.url.removeprefix("http://"),
        protocol="http",
        connect_timeout=30,
        read_timeout=30,
    )
    return AliyunProvider(config, ecs=aliyun.Ecs(config, credentials_of(KEY)))


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except ProviderError as error:
        return error


def check_nothing_is_known(provider: Provider) -> None:
    seen = outcome(provider.describe)
    if isinstance(seen, Observation):
        assert seen.state is Observed.UNKNOWN
        text = seen.reason
    else:
        assert type(seen) is Transient
        text = str(seen)
    assert text.isprintable()
    for secret in (*CREDENTIALS.values(), KEY.id, KEY.secret, "Signature", "<", "Traceback"):
        assert secret not in text or len(secret) < 8
    for act in (provider.start, provider.stop):
        result = outcome(act)
        if isinstance(provider, AwsProvider) or isinstance(result, ProviderError):
            assert type(result) is Transient
        else:  # the answer to StartInstance is a request id and no more
            assert isinstance(result, Accepted)
            assert result.request_id == "R"


@pytest.mark.parametrize("name", EC2_ODD)
def test_ec2(name: str, aws: Provider, faults: FaultProxy) -> None:
    faults.add(Fault.error(EC2_ODD[name]))
    check_nothing_is_known(aws)


@pytest.mark.parametrize("name", ECS_ODD)
def test_alibaba_cloud(name: str, alibaba: Provider, faults: FaultProxy) -> None:
    faults.add(Fault.error(ECS_ODD[name]))
    check_nothing_is_known(alibaba)


ADDRESSES = ("http://evil/?x", "a b", "192.0.2.7\n", "192.0.2.7:80", 5, ["x"], {})


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
def test_what_is_no_address_is_not_used(
    address: Any, aws: Provider, alibaba: Provider, faults: FaultProxy
) -> None:
    faults.add(Fault.error(ecs(ecs_instance(EipAddress={"IpAddress": address}, VpcAttributes={}))))
    assert alibaba.describe().address in ("", "192.0.2.7")
    faults.forget()
    within = {"PrivateIpAddress": {"IpAddress": [address]}}
    faults.add(Fault.error(ecs(ecs_instance(VpcAttributes=within))))
    assert alibaba.describe().address in ("", "192.0.2.7")
    faults.forget()
    text = f"<privateIpAddress>{address}</privateIpAddress>"
    faults.add(Fault.error(ec2_set(ec2_instance(more=text))))
    seen = aws.describe()
    assert seen.state is Observed.RUNNING
    assert seen.address in ("", "192.0.2.7", "5")


def test_codes_and_ids_of_a_refusal_are_one_line_without_secrets(
    alibaba: Provider, aws: Provider, faults: FaultProxy
) -> None:
    odd = f"Foo\n{KEY.id}\x1b[31m"
    faults.add(Fault.error(as_json({"Code": odd, "Message": odd, "RequestId": odd}, 400)))
    with pytest.raises(ProviderError) as caught:
        alibaba.describe()
    assert str(caught.value).isprintable()
    assert KEY.id not in str(caught.value)
    faults.forget()
    more = "</Error></Errors><Errors><Error>"
    faults.add(Fault.error(ec2_error(f"<Code>Foo\nBar</Code><Message>x\ny</Message>{more}")))
    with pytest.raises(ProviderError) as caught:
        aws.describe()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("cloud", ["aws", "alibaba"])
def test_an_answer_without_end_takes_little_memory(
    cloud: str, faults: FaultProxy, request: pytest.FixtureRequest
) -> None:
    provider: Provider = request.getfixturevalue(cloud)
    answer = Answered(200, b"<a>" + b"x" * 200_000_000)
    faults.add(Fault.error(answer))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Transient, match="too long"):
        provider.describe()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
