"""Map Alibaba Cloud's error codes to provider errors, in one table.

The cloud's own message is left out where the code is known: that of a wrong signature holds the
signed text, AccessKey id included. Checked against the error lists of StartInstance, StopInstance,
StartInstances, RunInstances and the common list of the ECS API reference, such as
https://www.alibabacloud.com/help/en/ecs/developer-reference/api-ecs-2014-05-26-startinstance.
"""

from __future__ import annotations

import re

from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.clouds.error_table import Meaning, row
from qwenctl.lib.redaction import redacted
from qwenctl.lib.text import escape_control

_TABLE: dict[str, Meaning] = {
    **row(
        NoCapacity,
        "Alibaba Cloud has no such machine free in this zone now; it is tried again while somebody "
        "waits, and another instance type or zone may have one",
        "OperationDenied.NoStock LackResource InvalidResourceType.NotSupported "
        "Invalid.PrivatePoolOptions.NoStock InvalidDedicatedHost.NotEnoughResource Zone.NotOnSale "
        "Zone.NotOpen InstanceType.Offline ResourceNotAvailable",
    ),
    **row(
        NoCapacity,
        "the spot price is above this instance's limit now; wait, raise the limit, or use a "
        "pay-as-you-go instance",
        "OperationDenied.SpotPriceLowerThanPublicPrice InvalidSpotPriceLimit.LowerThanPublicPrice",
    ),
    **row(
        Conflict,
        "the instance is not in a state in which it can do this",
        "IncorrectInstanceStatus IncorrectInstanceStatus.* InstanceNotReady OperationConflict "
        "LastTokenProcessing Idempotence.Processing",
    ),
    **row(
        Throttled,
        "Alibaba Cloud asks for fewer calls; it is tried again more slowly",
        "Throttling Throttling.* ServiceUnavailable Request.RateLimitExceeded",
    ),
    **row(
        Denied,
        "the RAM user or role may not do {service}:{action} on {resource}; attach a policy that "
        "allows it",
        "Forbidden Forbidden.RAM Forbidden.SubUser Forbidden.Unauthorized NoPermission "
        "NoPermission.* InvalidUser.Unauthorized UnauthorizedOperation",
    ),
    **row(
        Denied,
        "the account is not verified or is restricted; see the notices in the console",
        "Forbidden.RiskControl Forbidden.UserVerification RealNameAuthenticationError "
        "InvalidAccountStatus.*",
        about_account=True,
    ),
    **row(
        Denied,
        "the account has a payment overdue or too little balance; top it up in the console",
        "Account.Arrearage InvalidAccountStatus.NotEnoughBalance InsufficientBalance "
        "InsufficientBalance.*",
        about_account=True,
    ),
    **row(
        Denied,
        "the RAM user or role may not give an instance this role; attach a policy that allows "
        "ram:PassRole on it",
        "InvalidUser.PassRoleForbidden",
    ),
    **row(
        Denied,
        "the RAM role does not trust ECS; give it the trust policy that `qwenctl provision` prints",
        "InvalidRamRole.NotEcsRole",
    ),
    **row(
        ProviderError,
        "there is no such RAM role, or not everywhere yet; check its name, or try again in a "
        "minute",
        # The second is RAM's.
        "InvalidRamRole.NotFound EntityNotExist.Role",
    ),
    **row(
        Denied,
        "the account's quota is used up; ask for more in the console's Quota Center",
        # The last is RAM's.
        "QuotaExceed QuotaExceed.* QuotaExceeded QuotaExceeded.* LimitExceeded.*",
    ),
    **row(
        Denied,
        "the instance is locked for security reasons; see its notices in the ECS console and "
        "unlock it",
        "InstanceLockedForSecurity",
    ),
    **row(
        NotFound,
        "no such instance in region {region}; check aliyun.instance_id and aliyun.region",
        "InvalidInstanceId.NotFound InvalidInstanceId.Malformed InvalidInstanceId.Released "
        "InvalidInstance.NotFound Forbidden.InstanceNotFound",
    ),
    **row(
        Denied,
        "there is no region {region}, or not for this account; check aliyun.region",
        "InvalidRegionId.NotFound",
        about_account=True,
    ),
    **row(
        Denied,
        "this machine's clock is off by more than 15 minutes; set it by NTP (timedatectl)",
        "InvalidTimeStamp.* IllegalTimestamp",
        about_account=True,
    ),
    **row(
        Denied,
        "Alibaba Cloud does not accept the AccessKey; check ALIBABA_CLOUD_ACCESS_KEY_ID and "
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET, or the profile file, and that the key is enabled",
        "InvalidAccessKeyId InvalidAccessKeyId.* InvalidAccessKeySecret Forbidden.AccessKey "
        "Forbidden.AccessKeyDisabled SignatureDoesNotMatch IncompleteSignature",
        about_account=True,
    ),
    **row(
        Denied,
        "the STS token is not valid, or no longer; set a fresh ALIBABA_CLOUD_SECURITY_TOKEN with "
        "its AccessKey, or use the RAM role of this machine, which renews itself",
        "InvalidSecurityToken InvalidSecurityToken.* MissingSecurityToken",
        about_account=True,
    ),
    **row(
        Transient,
        "Alibaba Cloud failed to handle the call; the instance is looked at again",
        # A used nonce means that the SDK or a proxy repeated a request.
        "SignatureNonceUsed InternalError InternalError.* UnknownError",
    ),
}
"""Code → meaning. ``Family.*`` stands for all codes below it without a row of their own;
``{service}``, ``{action}``, ``{resource}`` and ``{region}`` are filled in."""

_NETWORK = (
    (
        r"name or service not known|failed to resolve|nodename nor servname|name resolution",
        "its name is not known; check aliyun.region, aliyun.endpoint and this machine's DNS",
    ),
    (
        r"certificate|ssl",
        "its certificate cannot be verified; check this machine's clock and CA certificates",
    ),
    (r"refused", "the connection is refused; check aliyun.endpoint"),
    (
        r"unreachable|connect timeout|connecttimeout",
        "there is no way to it; check this machine's route, or use the region's VPC endpoint",
    ),
    (r"timed out", "it has not answered in time"),
)
"""Pattern in the text of a connection error → sentence."""


def meaning_of(code: str) -> Meaning | None:
    """Return the row of a code: its own, else that of its nearest family."""
    if code in _TABLE:
        return _TABLE[code]
    family = code
    while "." in family:
        family = family.rpartition(".")[0]
        if f"{family}.*" in _TABLE:
            return _TABLE[f"{family}.*"]
    return None


def error_of(
    code: str,
    *,
    message: str,
    status: int,
    request_id: str,
    action: str,
    region: str,
    resource: str,
    secrets: tuple[str, ...] = (),
    api: str = "ECS",
) -> ProviderError:
    """Return the error for an answer; ``secrets`` are cut out of its message."""
    meaning = meaning_of(code)
    if meaning is not None:
        sentence = meaning.sentence.format(
            service=api.lower(), action=action, region=region, resource=resource
        )
        error = meaning.kind(sentence, cloud_code=code, request_id=request_id)
        error.about_account = meaning.about_account
        return error
    if status == 429:
        return Throttled(_TABLE["Throttling"].sentence, cloud_code=code, request_id=request_id)
    kind = Transient if status >= 500 else ProviderError
    text = f"Alibaba Cloud refuses {action}: {scrub(message, secrets)}"
    return kind(text, cloud_code=scrub(code, secrets), request_id=request_id)


def network_error(text: str, host: str, api: str = "ECS") -> Transient:
    """Return the error for a call without an answer.

    ``text`` is the SDK's. It holds the signed URL, so it is matched and never shown.
    """
    for pattern, sentence in _NETWORK:
        if re.search(pattern, text, re.IGNORECASE):
            return Transient(f"the {api} API at {host} cannot be reached: {sentence}")
    return Transient(f"the connection to the {api} API at {host} was cut")


def scrub(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return one line of at most 300 characters, without credentials and signatures."""
    return " ".join(escape_control(redacted(text, secrets, "…"), " ").split())[:300]
