"""Map the errors of EC2 and boto3 to provider errors.

`TABLE` is checked against https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html.
Other codes are shown as they are. EC2's own words are quoted only where they add something, and
never whole: they may hold an encoded authorization message, or the request that was signed.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

CLOCK_SKEW = 240.0
"""Seconds by which the clock may be wrong before it is blamed; AWS allows 300:
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_aws-signing.html."""

CLOCK_CODES = frozenset(
    {
        "AuthFailure",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
"""Codes of requests with a wrong time, and of others: the date of the answer decides."""

_QUOTED = "{words}"


TABLE: dict[str, Meaning] = {
    **row(
        NoCapacity,
        "EC2 has no such machine free in this zone now; if it lasts, use another zone or instance "
        "type, or a capacity reservation",
        "InsufficientCapacity InsufficientCapacityOnHost InsufficientHostCapacity "
        "InsufficientInstanceCapacity InsufficientReservedInstanceCapacity "
        "InsufficientReservedInstancesCapacity ReservationCapacityExceeded "
        "UnavailableHostRequirements",
    ),
    **row(
        NoCapacity,
        "the spot price is above this instance's maximum; raise it, or use an on-demand instance",
        "SpotMaxPriceTooLow",
    ),
    **row(
        NoCapacity,
        "EC2 does not offer this instance type here; use another type or zone" + _QUOTED,
        "Unsupported",
    ),
    **row(
        Conflict,
        "the instance is not in a state in which EC2 does this",
        "IncorrectInstanceState IncorrectState InvalidInstanceState InvalidState",
    ),
    **row(
        Conflict,
        "the spot request does not let the instance start now: EC2 needs a moment after a stop, and "
        "the request must be persistent, with interruption behaviour stop, and not cancelled",
        "IncorrectSpotRequestState",
    ),
    **row(
        Throttled,
        "EC2 takes no more calls from this account for now; look for other programs that ask often",
        "BandwidthLimitExceeded EC2ThrottledException LimitExceededException "
        "PriorRequestNotComplete RequestLimitExceeded RequestThrottled RequestThrottledException "
        "SlowDown ThrottledException Throttling ThrottlingException TooManyRequestsException",
    ),
    **row(
        Denied,
        "these credentials may not do this; attach the policy that `qwenctl permissions aws` prints"
        + _QUOTED,
        "AccessDenied AccessDeniedException UnauthorizedOperation",
    ),
    **row(
        Denied,
        "EC2 does not accept these credentials; check the access key, the profile or the instance "
        "profile with `aws sts get-caller-identity`",
        "AuthFailure IncompleteSignature InvalidAccessKeyId InvalidClientTokenId "
        "InvalidSignatureException MissingAuthenticationToken SignatureDoesNotMatch "
        "UnrecognizedClientException",
        about_account=True,
    ),
    **row(
        Denied,
        "the temporary credentials have expired; get new ones (such as `aws sso login`), or use an "
        "instance profile, which renews itself",
        "ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired",
        about_account=True,
    ),
    **row(
        Denied,
        "this machine's clock is wrong; set it, best with NTP (chrony, systemd-timesyncd)",
        "RequestTimeTooSkewed",
        about_account=True,
    ),
    **row(
        Denied,
        "AWS does not let this account use EC2 now; see its billing and verification pages, or ask "
        "AWS Support" + _QUOTED,
        "AccountDisabled Blocked OptInRequired PendingVerification",
        about_account=True,
    ),
    **row(
        Denied,
        "the account's EC2 quota is used up; stop other instances, or ask for more in Service Quotas "
        "(GPU families and spot have quotas of their own)" + _QUOTED,
        "HostLimitExceeded InstanceLimitExceeded MaxIOPSLimitExceeded "
        "MaxSpotInstanceCountExceeded VcpuLimitExceeded VolumeIOPSLimit VolumeLimitExceeded",
    ),
    **row(
        Denied,
        "EC2 does not permit this for this instance; if it has stop protection, switch that off "
        "(`aws ec2 modify-instance-attribute --no-disable-api-stop`)" + _QUOTED,
        "OperationNotPermitted",
    ),
    **row(
        Denied,
        "this instance cannot be stopped and started; it needs an EBS root volume, and as a spot "
        "instance a persistent request with interruption behaviour stop" + _QUOTED,
        "UnsupportedOperation",
    ),
    **row(
        NotFound,
        "EC2 knows no instance {instance} in {region}; check aws.instance_id and aws.region",
        "InvalidInstanceID InvalidInstanceID.Malformed InvalidInstanceID.NotFound",
    ),
    **row(
        Transient,
        "EC2 has a fault of its own; it is asked again",
        "InternalError InternalFailure RequestTimeout RequestTimeoutException ServiceUnavailable "
        "Unavailable",
    ),
    **row(
        ProviderError,
        "it was only a dry run; the call itself would be allowed",
        "DryRunOperation",
    ),
}
"""EC2's error code → meaning. Quotas are `Denied`: a person has to act."""

_SIGN_IN = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (aws.profile, AWS_PROFILE), "
    "or give this machine an instance profile"
)

MAX_QUOTE = 300
"""The longest quotation of EC2's words, in characters."""


def translate(error: Exception, *, instance: str, region: str) -> ProviderError:
    """Return the `ProviderError` for an error of boto3: one sentence, without secrets.

    Args:
        error: the error that boto3 raised.
        instance: the id of the call's instance.
        region: the call's region.
    """
    from botocore import exceptions as boto

    # boto3 wraps the errors that we raise on its connection.
    own = error.kwargs.get("error") if isinstance(error, boto.HTTPClientError) else error
    if isinstance(own, ProviderError):
        return own
    if isinstance(error, boto.ClientError):
        return _refused(error, instance, region)
    problem = _not_answered(error)
    problem.about_account = True
    return problem


def _not_answered(error: Exception) -> ProviderError:
    """Return the error for a call that EC2 did not answer; it is the same for any instance."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ProfileNotFound):
        return Denied(f"the AWS configuration files have no such profile; {_SIGN_IN}")
    if isinstance(error, boto.NoCredentialsError):
        return Denied(f"no AWS credentials were found; {_SIGN_IN}")
    if isinstance(error, boto.PartialCredentialsError):
        return Denied(f"the AWS credentials are incomplete; {_SIGN_IN}")
    if isinstance(error, (boto.TokenRetrievalError, boto.NoAuthTokenError)) or type(
        error
    ).__name__ in ("SSOTokenLoadError", "UnauthorizedSSOTokenError"):
        return Denied("the AWS sign-in has expired; run `aws sso login`")
    if isinstance(error, (boto.CredentialRetrievalError, boto.MetadataRetrievalError)):
        return Denied(
            "the AWS credentials could not be fetched; try `aws sts get-caller-identity` on this "
            "machine as this user"
        )
    if isinstance(error, (boto.NoRegionError, boto.InvalidRegionError)):
        return Denied("no AWS region is known; set aws.region, such as us-east-1")
    if isinstance(error, (boto.ConfigParseError, boto.ConfigNotFound, boto.InvalidConfigError)):
        return Denied("the AWS configuration files cannot be used; check them with `aws configure`")
    if isinstance(error, boto.SSLError):
        return _no_trust(error)
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
        return Transient(
            f"cannot connect to EC2{_host(error)}; check the network and the name of the region"
        )
    if isinstance(error, boto.ProxyConnectionError):
        return Transient("cannot reach EC2 through the HTTP proxy; check HTTPS_PROXY")
    if isinstance(error, boto.ReadTimeoutError):
        return Transient(f"EC2{_host(error)} did not answer in time")
    if isinstance(error, (boto.HTTPClientError, boto.IncompleteReadError)):
        return Transient("the connection to EC2 was cut before it answered")
    if type(error).__name__ == "ResponseParserError" or isinstance(error, boto.PaginationError):
        return not_ec2()
    if isinstance(error, boto.BotoCoreError):
        return ProviderError(f"boto3 cannot make the call: {quote(str(error))}")
    if isinstance(error, OSError):
        return Transient(f"this machine cannot make the call to EC2 now: {error.strerror}")
    if isinstance(error, (AttributeError, LookupError, RecursionError, TypeError, ValueError)):
        return not_ec2()  # raised by boto3's parser on unexpected answers
    raise error


def not_ec2(status: int = 0) -> Transient:
    """Return the error for an answer that is not one of the EC2 API."""
    with_status = f" with HTTP status {status}" if status else ""
    return Transient(
        f"something that is not EC2 has answered{with_status}; check aws.endpoint_url, and whether "
        "a web proxy is in between"
    )


def _refused(error: ClientError, instance: str, region: str) -> ProviderError:
    about: Any = error.response
    code = str(about.get("Error", {}).get("Code", ""))
    words = quote(str(about.get("Error", {}).get("Message", "")))
    metadata = about.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    known = TABLE.get(code)
    if known is not None:
        kind, text = known.kind, known.sentence
        text = text.replace(_QUOTED, f"; EC2 says: {words}" if words else "")
        text = text.replace("{instance}", instance).replace("{region}", region or "this region")
    elif status == 429:
        kind, text = Throttled, TABLE["RequestLimitExceeded"].sentence
    elif not code or code.isdigit():  # boto3 makes a code of the HTTP status
        return not_ec2(status)
    elif status >= 500:
        kind, text = Transient, f"EC2 has a fault of its own; it says: {words}"
    else:
        kind, text = ProviderError, f"EC2 refuses: {words}"
    if code in CLOCK_CODES and (wrong := _clock_error(metadata)):
        kind, text = Denied, wrong
    problem = kind(text, cloud_code=code, request_id=str(metadata.get("RequestId", "")))
    problem.about_account = known is not None and known.about_account
    return problem


def _clock_error(metadata: Any) -> str:
    """Return the clock's error, judged by the answer's date; empty if there is none."""
    try:
        theirs = parsedate_to_datetime(metadata["HTTPHeaders"]["date"])
        ahead = (datetime.now(timezone.utc) - theirs).total_seconds()
    except (KeyError, TypeError, ValueError):
        return ""
    if abs(ahead) < CLOCK_SKEW:
        return ""
    return (
        f"this machine's clock is {abs(ahead) / 60:.0f} minutes {'fast' if ahead > 0 else 'slow'}; "
        "set it, best with NTP (chrony, systemd-timesyncd)"
    )


def _no_trust(error: Exception) -> ProviderError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Denied(
            f"the certificate of EC2{_host(error)} is not trusted; if a proxy opens TLS here, set "
            "AWS_CA_BUNDLE to its certificate"
        )
    return Transient(f"the secure connection to EC2{_host(error)} failed")


def _host(error: Any) -> str:
    """Return `` at HOST``, without the rest of the URL."""
    url = getattr(error, "kwargs", {}).get("endpoint_url") or ""
    host = urlsplit(str(url)).hostname
    return f" at {host}" if host else ""


def quote(words: str) -> str:
    """Return EC2's own words on one short line, without possible secrets."""
    encoded = "Encoded authorization failure message:"
    before, found, _ = words.partition(encoded)
    if found:
        before = before.rstrip() + " (`aws sts decode-authorization-message` opens the rest)"
    line = " ".join(escape_control(before, " ").split())
    line = re.sub(r"[A-Za-z0-9+/=_-]{40,}", "…", redacted(line, mask="…"))
    return line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 1] + "…"
