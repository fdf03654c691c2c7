"""What Alibaba Cloud's error codes mean to us, in one table, and what a person can do about each.

The cloud's own message is left out where the code is known: that of a wrong signature holds the
signed text, AccessKey id included. Checked against the error lists of StartInstance, StopInstance,
StartInstances, RunInstances and the common list of the ECS API reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.lib.redaction import redacted

__all__ = ["DRY_RUN_PASSED", "Meaning", "error_of", "meaning_of", "network_error", "scrub"]

DRY_RUN_PASSED = "DryRunOperation"
"""The error code by which the API says that a call with ``DryRun`` would have been accepted."""


@dataclass(frozen=True)
class Meaning:
    """One row of the table."""

    kind: type[ProviderError]
    sentence: str
    """What happened and what to do; ``{service}``, ``{action}``, ``{resource}`` and ``{region}`` are
    filled in."""


_NO_STOCK = Meaning(
    NoCapacity,
    "Alibaba Cloud has no such machine free in this zone now; it is tried again while somebody "
    "waits, and another instance type or zone may have one",
)
_SPOT_PRICE = Meaning(
    NoCapacity,
    "the spot price is above this instance's limit now; wait, raise the limit, or use a "
    "pay-as-you-go instance",
)
_WRONG_STATE = Meaning(Conflict, "the instance is not in a state in which it can do this")
_THROTTLED = Meaning(Throttled, "Alibaba Cloud asks for fewer calls; it is tried again more slowly")
_FORBIDDEN = Meaning(
    Denied,
    "the RAM user or role may not do {service}:{action} on {resource}; attach a policy that allows "
    "it",
)
_MAY_NOT_PASS = Meaning(
    Denied,
    "the RAM user or role may not give an instance this role; attach a policy that allows "
    "ram:PassRole on it",
)
_NO_ROLE = Meaning(
    ProviderError,
    "there is no such RAM role, or not everywhere yet; check its name, or try again in a minute",
)
_NOT_FOR_ECS = Meaning(
    Denied,
    "the RAM role does not trust ECS; give it the trust policy that `qwenctl provision` prints",
)
_ARREARS = Meaning(
    Denied, "the account has a payment overdue or too little balance; top it up in the console"
)
_QUOTA = Meaning(
    Denied, "the account's quota is used up; ask for more in the console's Quota Center"
)
_LOCKED = Meaning(
    Denied,
    "the instance is locked for security reasons; see its notices in the ECS console and unlock it",
)
_NOT_FOUND = Meaning(
    NotFound, "no such instance in region {region}; check aliyun.instance_id and aliyun.region"
)
_CLOCK = Meaning(
    Denied, "this machine's clock is off by more than 15 minutes; set it by NTP (timedatectl)"
)
_CREDENTIALS = Meaning(
    Denied,
    "Alibaba Cloud does not accept the AccessKey; check ALIBABA_CLOUD_ACCESS_KEY_ID and "
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET, or the profile file, and that the key is enabled",
)
_TOKEN = Meaning(
    Denied,
    "the STS token is not valid, or no longer; set a fresh ALIBABA_CLOUD_SECURITY_TOKEN with its "
    "AccessKey, or use the RAM role of this machine, which renews itself",
)
_VERIFICATION = Meaning(
    Denied, "the account is not verified or is restricted; see the notices in the console"
)
_SERVER = Meaning(
    Transient, "Alibaba Cloud failed to handle the call; the instance is looked at again"
)
_REGION = Meaning(
    Denied, "there is no region {region}, or not for this account; check aliyun.region"
)

_TABLE: dict[str, Meaning] = {
    # No stock
    "OperationDenied.NoStock": _NO_STOCK,
    "LackResource": _NO_STOCK,
    "InvalidResourceType.NotSupported": _NO_STOCK,
    "Invalid.PrivatePoolOptions.NoStock": _NO_STOCK,
    "InvalidDedicatedHost.NotEnoughResource": _NO_STOCK,
    "Zone.NotOnSale": _NO_STOCK,
    "Zone.NotOpen": _NO_STOCK,
    "InstanceType.Offline": _NO_STOCK,
    "ResourceNotAvailable": _NO_STOCK,
    "OperationDenied.SpotPriceLowerThanPublicPrice": _SPOT_PRICE,
    "InvalidSpotPriceLimit.LowerThanPublicPrice": _SPOT_PRICE,
    # Wrong state
    "IncorrectInstanceStatus": _WRONG_STATE,
    "IncorrectInstanceStatus.*": _WRONG_STATE,
    "InstanceNotReady": _WRONG_STATE,
    "OperationConflict": _WRONG_STATE,
    "LastTokenProcessing": _WRONG_STATE,
    "Idempotence.Processing": _WRONG_STATE,
    # Throttled
    "Throttling": _THROTTLED,
    "Throttling.*": _THROTTLED,
    "ServiceUnavailable": _THROTTLED,
    "Request.RateLimitExceeded": _THROTTLED,
    # Not allowed
    "Forbidden": _FORBIDDEN,
    "Forbidden.RAM": _FORBIDDEN,
    "Forbidden.SubUser": _FORBIDDEN,
    "Forbidden.Unauthorized": _FORBIDDEN,
    "Forbidden.RiskControl": _VERIFICATION,
    "Forbidden.UserVerification": _VERIFICATION,
    "Account.Arrearage": _ARREARS,
    "NoPermission": _FORBIDDEN,
    "NoPermission.*": _FORBIDDEN,
    "InvalidUser.Unauthorized": _FORBIDDEN,
    "UnauthorizedOperation": _FORBIDDEN,
    "InvalidUser.PassRoleForbidden": _MAY_NOT_PASS,
    "InvalidRamRole.NotEcsRole": _NOT_FOR_ECS,
    "InvalidRamRole.NotFound": _NO_ROLE,
    "EntityNotExist.Role": _NO_ROLE,  # of RAM
    "RealNameAuthenticationError": _VERIFICATION,
    # The account's standing
    "InvalidAccountStatus.NotEnoughBalance": _ARREARS,
    "InsufficientBalance": _ARREARS,
    "InsufficientBalance.*": _ARREARS,
    "InvalidAccountStatus.*": _VERIFICATION,
    "QuotaExceed": _QUOTA,
    "QuotaExceed.*": _QUOTA,
    "QuotaExceeded": _QUOTA,
    "QuotaExceeded.*": _QUOTA,
    "LimitExceeded.*": _QUOTA,  # of RAM
    "InstanceLockedForSecurity": _LOCKED,
    # Not found
    "InvalidInstanceId.NotFound": _NOT_FOUND,
    "InvalidInstanceId.Malformed": _NOT_FOUND,
    "InvalidInstanceId.Released": _NOT_FOUND,
    "InvalidInstance.NotFound": _NOT_FOUND,
    "Forbidden.InstanceNotFound": _NOT_FOUND,
    "InvalidRegionId.NotFound": _REGION,
    # Clock
    "InvalidTimeStamp.*": _CLOCK,
    "IllegalTimestamp": _CLOCK,
    # Credentials
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidAccessKeyId.*": _CREDENTIALS,
    "InvalidAccessKeySecret": _CREDENTIALS,
    "Forbidden.AccessKey": _CREDENTIALS,
    "Forbidden.AccessKeyDisabled": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "InvalidSecurityToken": _TOKEN,
    "InvalidSecurityToken.*": _TOKEN,
    "MissingSecurityToken": _TOKEN,
    # A second request with the same nonce can only be a repetition below us.
    "SignatureNonceUsed": _SERVER,
    "InternalError": _SERVER,
    "InternalError.*": _SERVER,
    "UnknownError": _SERVER,
}
"""Code -> meaning. ``Family.*`` stands for all codes below it that have no row of their own."""

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
"""What the text of a connection error holds -> what to say."""


def meaning_of(code: str) -> Meaning | None:
    """The row for a code: its own, else that of its nearest family."""
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
    """The error for what the cloud answered. ``secrets`` are cut out of a message that is shown."""
    meaning = meaning_of(code)
    if meaning is not None:
        sentence = meaning.sentence.format(
            service=api.lower(), action=action, region=region, resource=resource
        )
        return meaning.kind(sentence, cloud_code=code, request_id=request_id)
    if status == 429:
        return Throttled(_THROTTLED.sentence, cloud_code=code, request_id=request_id)
    kind = Transient if status >= 500 else ProviderError
    text = f"Alibaba Cloud refuses {action}: {scrub(message, secrets)}"
    return kind(text, cloud_code=scrub(code, secrets), request_id=request_id)


def network_error(text: str, host: str, api: str = "ECS") -> Transient:
    """The error for a call that got no answer. ``text`` is the SDK's, which holds the signed URL:
    it is read and never shown."""
    for pattern, sentence in _NETWORK:
        if re.search(pattern, text, re.IGNORECASE):
            return Transient(f"the {api} API at {host} cannot be reached: {sentence}")
    return Transient(f"the connection to the {api} API at {host} was cut")


def scrub(text: str, secrets: tuple[str, ...] = ()) -> str:
    """At most one line of 300 characters, without AccessKeys, tokens and signatures."""
    return " ".join(redacted(text, secrets, "…").split())[:300]
