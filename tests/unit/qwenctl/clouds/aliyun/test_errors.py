from __future__ import annotations

import re

import pytest

from qwenctl.clouds.aliyun.errors import _TABLE, error_of, meaning_of, network_error, scrub
from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)

CODES: list[tuple[str, type[ProviderError], str]] = [
    ("OperationDenied.NoStock", NoCapacity, "no such machine free"),
    ("LackResource", NoCapacity, "no such machine free"),
    ("InvalidResourceType.NotSupported", NoCapacity, "no such machine free"),
    ("Invalid.PrivatePoolOptions.NoStock", NoCapacity, "no such machine free"),
    ("InvalidDedicatedHost.NotEnoughResource", NoCapacity, "no such machine free"),
    ("OperationDenied.SpotPriceLowerThanPublicPrice", NoCapacity, "spot price"),
    ("IncorrectInstanceStatus", Conflict, "not in a state"),
    ("IncorrectInstanceStatus.Initializing", Conflict, "not in a state"),
    ("Throttling", Throttled, "fewer calls"),
    ("Throttling.User", Throttled, "fewer calls"),
    ("Throttling.Api.Deeper", Throttled, "fewer calls"),
    ("ServiceUnavailable", Throttled, "fewer calls"),
    ("Forbidden.RAM", Denied, "ecs:StartInstance on acs:ecs:cn-hangzhou:.:instance/i-bp1x"),
    ("Forbidden", Denied, "ecs:StartInstance"),
    ("NoPermission", Denied, "ecs:StartInstance"),
    ("InvalidAccountStatus.NotEnoughBalance", Denied, "top it up"),
    ("InsufficientBalance", Denied, "top it up"),
    ("QuotaExceed.ElasticQuota", Denied, "Quota Center"),
    ("QuotaExceed.AfterpayInstance", Denied, "Quota Center"),
    ("InstanceLockedForSecurity", Denied, "unlock"),
    ("InvalidInstanceId.NotFound", NotFound, "aliyun.instance_id"),
    ("InvalidRegionId.NotFound", Denied, "no region cn-hangzhou"),
    ("InvalidTimeStamp.Expired", Denied, "NTP"),
    ("IllegalTimestamp", Denied, "NTP"),
    ("InvalidAccessKeyId.NotFound", Denied, "ALIBABA_CLOUD_ACCESS_KEY_ID"),
    ("InvalidAccessKeyId.Inactive", Denied, "enabled"),
    ("InvalidAccessKeySecret", Denied, "ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
    ("SignatureDoesNotMatch", Denied, "ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
    ("InvalidSecurityToken.Expired", Denied, "ALIBABA_CLOUD_SECURITY_TOKEN"),
    ("InvalidSecurityToken.MismatchWithAccessKey", Denied, "ALIBABA_CLOUD_SECURITY_TOKEN"),
    ("InternalError", Transient, "failed to handle"),
    ("InvalidUser.PassRoleForbidden", Denied, "ram:PassRole"),
    ("InvalidRamRole.NotEcsRole", Denied, "does not trust ECS"),
    ("InvalidRamRole.NotFound", ProviderError, "no such RAM role"),
    ("LimitExceeded.Role.Policy", Denied, "quota"),
]


def error(code: str, *, message: str = "", status: int = 400) -> ProviderError:
    return error_of(
        code,
        message=message,
        status=status,
        request_id="REQ-1",
        action="StartInstance",
        region="cn-hangzhou",
        resource="acs:ecs:cn-hangzhou:*:instance/i-bp1x",
        secrets=("LTAI5tReal", "s3cr3t", ""),
    )


@pytest.mark.parametrize(("code", "kind", "words"), CODES)
def test_a_code_has_its_class_and_says_what_to_do(
    code: str, kind: type[ProviderError], words: str
) -> None:
    found = error(code)
    assert type(found) is kind
    assert re.search(words, str(found))
    assert (found.cloud_code, found.request_id) == (code, "REQ-1")
    assert str(found).endswith(f"({code}, request REQ-1)")


def test_what_is_wrong_with_the_account_is_not_sought_among_its_instances() -> None:
    for code in (
        "InvalidAccessKeyId.Inactive",
        "SignatureDoesNotMatch",
        "InvalidTimeStamp.Expired",
    ):
        assert error(code).about_account
    for code in ("Forbidden.RAM", "InvalidInstanceId.NotFound"):  # a policy may name resources
        assert not error(code).about_account


def test_every_row_can_be_said() -> None:
    for code in _TABLE:
        text = str(error(code.replace(".*", ".Member")))
        assert "{" not in text, text
        assert not text.endswith(".")


def test_a_row_of_its_own_comes_before_the_familys() -> None:
    assert meaning_of("InvalidAccountStatus.NotEnoughBalance") is _TABLE["InsufficientBalance"]
    assert meaning_of("InvalidAccountStatus.Other") is _TABLE["Forbidden.RiskControl"]
    assert meaning_of("QuotaExceed") is meaning_of("QuotaExceed.A.B")
    assert meaning_of("Unheard.Of") is None
    assert meaning_of("") is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ProviderError),
        (403, ProviderError),
        (429, Throttled),
        (500, Transient),
        (503, Transient),
    ],
)
def test_an_unknown_code_is_shown_and_not_swallowed(status: int, kind: type[ProviderError]) -> None:
    found = error("Some.NewCode", message="The cloud has a new idea.", status=status)
    assert type(found) is kind
    assert found.cloud_code == "Some.NewCode"
    if kind is not Throttled:
        assert "StartInstance: The cloud has a new idea." in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "GET /?AccessKeyId=LTAI5tOther&Signature=abc%2Bdef%3D&Action=Start failed",
        "string to sign is:POST&%2F&AccessKeyId%3DLTAI5tOther%26Action%3DStart%26SecurityToken%3Dtok",
        "the key LTAI5tReal with s3cr3t is bad",
        "AccessKeyId=LTAI5tOther",
    ],
)
def test_no_secret_is_shown(text: str) -> None:
    shown = str(error("Some.NewCode", message=text))
    for secret in ("LTAI5tReal", "s3cr3t", "LTAI5tOther", "abc%2B", "3Dtok"):
        assert secret not in shown, shown


def test_a_long_message_is_one_short_line() -> None:
    assert len(scrub("word \n" * 500)) == 300
    assert "\n" not in scrub("one\ntwo")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[Errno -2] Name or service not known", "DNS"),
        ("Failed to resolve 'ecs.example'", "DNS"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "certificate"),
        ("[Errno 111] Connection refused", "refused"),
        ("ConnectTimeoutError(... timed out. (connect timeout=5)", "route"),
        ("Read timed out. (read timeout=10)", "not answered in time"),
        ("Connection aborted. RemoteDisconnected", "was cut"),
    ],
)
def test_what_kept_the_call_from_the_cloud_is_said_without_its_address(
    text: str, words: str
) -> None:
    found = network_error(f"/?AccessKeyId=LTAI5tReal&Signature=xyz {text}", "ecs.example")
    assert isinstance(found, Transient)
    assert words in str(found)
    assert "ecs.example" in str(found)
    assert "LTAI5tReal" not in str(found)


def test_the_api_that_refused_is_named() -> None:
    found = error_of(
        "NoPermission",
        message="",
        status=403,
        request_id="REQ-1",
        action="CreateRole",
        region="cn-hangzhou",
        resource="acs:ram:*:*:role/x",
        api="RAM",
    )
    assert "may not do ram:CreateRole on acs:ram:*:*:role/x" in str(found)
    assert str(network_error("refused", "ram.example", "RAM")).startswith(
        "the RAM API at ram.example cannot be reached"
    )
