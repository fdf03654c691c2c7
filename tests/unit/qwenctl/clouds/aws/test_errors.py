"""What the AWS provider makes of EC2's words; no network."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from qwenctl.clouds.aws.api import _REASONS, account_of, observation
from qwenctl.clouds.aws.errors import TABLE, quote, translate
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.providers import make_provider
from qwenctl.core.phase import Observed
from qwenctl.errors import ConfigError

ID = "i-0123456789abcdef0"


def refused(code: str, message: str = "", status: int = 400, date: str = "") -> ProviderError:
    from botocore.exceptions import ClientError

    metadata = {"RequestId": "req-1", "HTTPStatusCode": status, "HTTPHeaders": {"date": date}}
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}
    return translate(ClientError(answer, "StartInstances"), instance=ID, region="us-east-1")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("InsufficientInstanceCapacity", NoCapacity),
        ("InsufficientHostCapacity", NoCapacity),
        ("IncorrectInstanceState", Conflict),
        ("RequestLimitExceeded", Throttled),
        ("UnauthorizedOperation", Denied),
        ("AuthFailure", Denied),
        ("ExpiredToken", Denied),
        ("RequestExpired", Denied),
        ("PendingVerification", Denied),
        ("VcpuLimitExceeded", Denied),
        ("MaxSpotInstanceCountExceeded", Denied),
        ("InvalidInstanceID.NotFound", NotFound),
        ("InternalError", Transient),
    ],
)
def test_a_documented_code_has_its_class(code: str, kind: type[ProviderError]) -> None:
    # EC2 answers lack of capacity and throttling with 5xx: the code counts, not the status.
    for status in (400, 500, 503):
        assert type(refused(code, status=status)) is kind


@pytest.mark.parametrize(
    "code",
    [
        "AuthFailure",
        "ExpiredToken",
        "IncompleteSignature",
        "OptInRequired",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    ],
)
def test_what_is_wrong_with_the_account_is_not_sought_among_its_instances(code: str) -> None:
    assert refused(code).about_account
    assert not refused("InvalidInstanceID.NotFound").about_account


@pytest.mark.parametrize("code", TABLE)
def test_every_code_keeps_what_support_asks_for_in_one_line(code: str) -> None:
    error = refused(code, "EC2's own words")
    assert (error.cloud_code, error.request_id) == (code, "req-1")
    assert f"({code}, request req-1)" in str(error)
    assert "\n" not in str(error)
    assert "{" not in str(error)


def test_an_unknown_code_is_shown_as_it_is() -> None:
    error = refused("BrandNewError", "the moon is full")
    assert type(error) is ProviderError
    assert str(error) == "EC2 refuses: the moon is full (BrandNewError, request req-1)"
    assert type(refused("BrandNewError", "", 502)) is Transient
    assert type(refused("BrandNewError", "", 429)) is Throttled


@pytest.mark.parametrize("offset", [-1200, 1200])
def test_a_wrong_clock_is_told_from_wrong_credentials(offset: float) -> None:
    for code in ("AuthFailure", "RequestExpired", "SignatureDoesNotMatch"):
        wrong = refused(code, date=formatdate(time.time() + offset, usegmt=True))
        assert type(wrong) is Denied
        assert f"clock is 20 minutes {'slow' if offset > 0 else 'fast'}" in str(wrong)
        right = refused(code, date=formatdate(time.time(), usegmt=True))
        assert "clock" not in str(right)
        assert "credentials" in str(right)


def test_quoted_words_hold_no_secret() -> None:
    blob = "k3Jh" * 200
    text = quote(
        "You are not authorized. User: arn:aws:iam::123456789012:user/ada is not allowed "
        f"ec2:StartInstances. Encoded authorization failure message: {blob}"
    )
    assert "ec2:StartInstances" in text
    assert "aws sts decode-authorization-message" in text
    assert "k3Jh" not in text
    text = quote(f"key AKIAIOSFODNN7EXAMPLE\ntoken {blob}\x1b[31m " + "long words " * 100)
    assert "AKIA" not in text
    assert "k3Jh" not in text
    assert text.isprintable()
    assert len(text) <= 300


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOEXEC])
def test_a_fault_of_this_machine_says_nothing_about_the_instance(number: int) -> None:
    """Such as a credential process that cannot be run, or a file that cannot be opened."""
    problem = translate(OSError(number, os.strerror(number)), instance=ID, region="")
    assert isinstance(problem, Transient)
    assert os.strerror(number) in str(problem)


def test_a_mistake_of_our_own_stays_one() -> None:
    with pytest.raises(ZeroDivisionError):
        translate(ZeroDivisionError(), instance=ID, region="")


def described(name: str, code: str = "", **more: Any) -> dict[str, Any]:
    reason = {"StateReason": {"Code": code, "Message": f"{code}: words of EC2"}} if code else {}
    return {"InstanceId": ID, "State": {"Name": name}, **reason, **more}


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("pending", Observed.STARTING),
        ("running", Observed.RUNNING),
        ("stopping", Observed.STOPPING),
        ("stopped", Observed.STOPPED),
        ("shutting-down", Observed.ABSENT),
        ("terminated", Observed.ABSENT),
        ("newly-invented", Observed.UNKNOWN),
    ],
)
def test_each_state_of_ec2(name: str, state: Observed) -> None:
    assert observation(ID, described(name)).state is state


@pytest.mark.parametrize("code", _REASONS)
def test_a_known_reason_is_told_in_plain_words_with_its_time(code: str) -> None:
    seen = observation(
        ID,
        described(
            "stopped", code, StateTransitionReason="User initiated (2026-01-02 03:04:05 GMT)"
        ),
    )
    assert seen.reason == f"{_REASONS[code]} (2026-01-02 03:04:05 GMT, {code})"


def test_an_unknown_reason_is_shown_in_ec2s_words() -> None:
    seen = observation(ID, described("stopped", "Server.Whatever"))
    assert seen.reason == "Server.Whatever: words of EC2 (Server.Whatever)"


def test_a_running_instance_needs_no_reason() -> None:
    assert observation(ID, described("running", "Client.UserInitiatedShutdown")).reason == ""


def test_gone_and_never_there_are_told_apart() -> None:
    gone = observation(ID, described("terminated", "Server.SpotInstanceTermination"))
    assert gone.reason.startswith("the instance has been terminated and cannot come back: EC2 took")
    never = observation(ID, None)
    assert never.state is Observed.ABSENT
    assert f"knows no instance {ID}" in never.reason


@pytest.mark.parametrize(
    ("wanted", "private", "public", "chosen"),
    [
        ("auto", "10.0.0.1", "192.0.2.1", "10.0.0.1"),
        ("auto", "", "192.0.2.1", "192.0.2.1"),
        ("private", "10.0.0.1", "192.0.2.1", "10.0.0.1"),
        ("public", "10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("public", "10.0.0.1", "", ""),
        ("private", "", "192.0.2.1", ""),
    ],
)
def test_the_address_is_the_one_asked_for(
    wanted: Any, private: str, public: str, chosen: str
) -> None:
    has = {"PrivateIpAddress": private, "PublicIpAddress": public}
    assert observation(ID, described("running", **has), wanted).address == chosen
    assert observation(ID, described("stopped", **has), wanted).address == ""


def test_instances_of_one_account_share_a_client() -> None:
    one = AwsConfig(region="us-east-1", instance_id="i-00000001", address="public")
    other = AwsConfig(region="us-east-1", instance_id="i-00000002")
    elsewhere = AwsConfig(region="us-west-2", instance_id="i-00000002")
    assert account_of(one) is account_of(other)
    assert account_of(one) is not account_of(elsewhere)


def test_it_is_made_from_the_configuration(tmp_path: Path) -> None:
    aws = AwsConfig(region="us-east-1", instance_id=ID, connect_timeout=2, read_timeout=3)
    gpu = GpuConfig(provider="aws", aws=aws)
    provider = make_provider("main", gpu, Config(state_dir=str(tmp_path)))
    assert isinstance(provider, AwsProvider)
    assert provider.call_timeout == 10.0
    with pytest.raises(ConfigError, match=r"gpu\.main\.aws\.instance_id is not set"):
        make_provider("main", GpuConfig(provider="aws"), Config(state_dir=str(tmp_path)))


def test_the_sdk_is_loaded_at_the_first_call_only() -> None:
    script = (
        "import sys; from qwenctl.config.deployment import *; from qwenctl.config.gpu import *; from qwenctl.clouds.aws.settings import *; from qwenctl.config.providers import make_provider\n"
        f"gpu = GpuConfig(provider='aws', aws=AwsConfig(instance_id='{ID}'))\n"
        "make_provider('main', gpu, Config())\n"
        "assert 'boto3' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_sdk_its_name_is_said() -> None:
    script = (
        "import sys; sys.modules['botocore'] = None\n"
        "from qwenctl.config.deployment import *; from qwenctl.config.gpu import *; from qwenctl.clouds.aws.settings import *; from qwenctl.config.providers import make_provider\n"
        f"gpu = GpuConfig(provider='aws', aws=AwsConfig(instance_id='{ID}'))\n"
        "try: make_provider('main', gpu, Config())\n"
        "except ModuleNotFoundError as error: assert error.name == 'botocore'\n"
        "else: raise SystemExit('it was made')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def with_endpoint(url: str) -> GpuConfig:
    table = AwsConfig(region="us-east-1", instance_id=ID, endpoint_url=url)
    return GpuConfig(provider="aws", aws=table)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://ec2.example.com", '"http" is only for an endpoint on this machine'),
        ("http://127.0.0.1.example.com:80", '"http" is only for an endpoint on this machine'),
        ("http://127.0.0.1@10.0.0.9", '"http" is only for an endpoint on this machine'),
        ("https://exa mple", "is no URL of a host"),
        ("https://[::1", "is no URL of a host"),
        ("https://host:port", "is no URL of a host"),
        ("https://-host", "is no URL of a host"),
        ("https:///path", "is no URL of a host"),
        ("https://ada:pass-word@exa mple", "is no URL of a host"),
    ],
)
def test_an_endpoint_that_is_no_safe_one_is_refused(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"gpu\.main\.aws\.endpoint_url: .*{words}") as caught:
        make_provider("main", with_endpoint(url), Config(state_dir=str(tmp_path)))
    assert "pass-word" not in str(caught.value)
    with pytest.raises(ConfigError, match=words):  # as `import` and `provision` ask for it
        account_of(with_endpoint(url).aws)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://vpce-0a1b2c-3d4e.ec2.us-east-1.vpce.amazonaws.com",
        "https://10.0.0.9:8443/path",
        "https://[fd00::1]:443",
        "http://127.0.0.1:5000",
        "http://localhost:5000",
        "http://[::1]:5000",
    ],
)
def test_other_endpoints_are_not(url: str, tmp_path: Path) -> None:
    provider = make_provider("main", with_endpoint(url), Config(state_dir=str(tmp_path)))
    assert isinstance(provider, AwsProvider)


def test_what_we_raise_below_boto3_comes_out_as_it_is() -> None:
    from botocore.exceptions import HTTPClientError

    own = Transient("not sent")
    assert translate(HTTPClientError(error=own), instance=ID, region="us-east-1") is own
