"""``python -m gpu_node.aliyun_stop``: stop this Alibaba Cloud instance and its billing.

The `power_off_command` of nodes there, where powering off the operating system goes on costing. It
takes the instance's name and its role's credentials from the metadata service, in the hardened mode
that needs a token, and calls ``StopInstance`` with ``StoppedMode=StopCharging``.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Sequence

from gpu_node.machine.metadata import Metadata, NoMetadata
from qwenctl.lib.extras import how_to_install

TIMEOUT = 10.0
"""Seconds for each single request."""


ODD_CLOCK = 60.0
"""Seconds that this machine's clock may be off."""


class StopFailed(Exception):
    """The instance was not stopped; the text says why, without secrets."""


def main(argv: Sequence[str] | None = None) -> int:
    """Stop this instance; return 0 once the cloud has accepted."""
    parser = argparse.ArgumentParser(
        prog="python -m gpu_node.selfstop.aliyun",
        description="Stop this Alibaba Cloud instance so that it is no longer billed.",
    )
    parser.add_argument("--metadata", metavar="URL", default="", help="metadata service")
    parser.add_argument(
        "--endpoint", metavar="HOST", help="ECS API; default: ecs-vpc.REGION.aliyuncs.com"
    )
    parser.add_argument("--protocol", choices=("https", "http"), default="https")
    given = parser.parse_args(argv)
    try:
        stop_this_instance(given.metadata, given.endpoint, given.protocol)
    except StopFailed as error:
        print(f"cannot stop this instance: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def stop_this_instance(metadata: str, endpoint: str | None, protocol: str) -> None:
    """Call ``StopInstance`` for the instance that this runs on.

    Raises:
        StopFailed: not such an instance, no role, the SDK is not installed, or the cloud said no.
    """
    try:
        from aliyunsdkcore.acs_exception.exceptions import ClientException, ServerException
        from aliyunsdkcore.auth.credentials import StsTokenCredential
        from aliyunsdkcore.client import AcsClient
        from aliyunsdkcore.http import http_response
        from aliyunsdkecs.request.v20140526.StopInstanceRequest import StopInstanceRequest
    except ModuleNotFoundError as error:
        raise StopFailed(f"{error.name} is not installed: {how_to_install('aliyun')}") from None
    # The SDK logs the signed address and what the API says of it.
    logging.getLogger("aliyunsdkcore").setLevel(logging.CRITICAL + 1)
    http_response.logger.disabled = True
    instance_id, region, role, now = _read_metadata(metadata)
    _sign_at(now)
    client = AcsClient(
        region_id=region,
        credential=StsTokenCredential(
            role["AccessKeyId"], role["AccessKeySecret"], role["SecurityToken"]
        ),
        timeout=TIMEOUT,
        connect_timeout=TIMEOUT,
    )
    request = StopInstanceRequest()
    request.set_endpoint(endpoint or f"ecs-vpc.{region}.aliyuncs.com")
    request.set_protocol_type(protocol)
    request.set_InstanceId(instance_id)
    request.set_StoppedMode("StopCharging")
    try:
        answer = json.loads(client.do_action_with_exception(request))
    except ServerException as error:
        raise _refused(str(error.get_error_code()), str(error.get_request_id() or "")) from None
    except ClientException as error:
        # Its text may hold the signed address: only the code is fit to show.
        raise StopFailed(f"the ECS API cannot be reached ({error.get_error_code()})") from None
    except (ValueError, LookupError, AttributeError, TypeError):  # of the SDK's parser
        answer = None
    if not isinstance(answer, dict) or not answer.get("RequestId"):
        raise StopFailed(_NOT_THE_API)


_NOT_THE_API = "what has answered is not the ECS API; is a proxy in between?"

_HINTS = (
    (
        r"Forbid|NoPermission|Unauthorized",
        "its role may not: see `qwenctl permissions aliyun --node`",
    ),
    (r"Signature|AccessKey|SecurityToken", "the API does not accept the credentials of its role"),
    (r"Time[Ss]tamp", "its clock is wrong; set it by NTP"),
    (r"IncorrectInstanceStatus", "it is not in a state in which it can be stopped"),
    (r"Throttling|ServiceUnavailable", "the API asks for fewer calls"),
)
"""Pattern of an error code -> its meaning here; the first that matches."""


def _refused(code: str, request_id: str) -> StopFailed:
    """Return the error for a refusal. The API's own text is not shown: for a wrong signature it
    repeats what was signed, AccessKey id and token included."""
    if not (re.fullmatch(r"[\w.-]{1,80}", code) and re.fullmatch(r"[\w-]{1,80}", request_id)):
        return StopFailed(_NOT_THE_API)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, code)), "")
    hint = hint or "the ECS API refuses StopInstance"
    return StopFailed(f"{hint} ({code}, request {request_id})")


def _sign_at(now: float) -> None:
    """Have the SDK sign by the cloud's clock where this machine's is off.

    The API refuses a request that is 15 minutes old, and the instance would stay on.
    """
    from aliyunsdkcore.utils import parameter_helper

    ahead = time.time() - now
    if abs(ahead) < ODD_CLOCK:
        return
    print(  # noqa: T201
        f"this machine's clock is {abs(ahead):.0f} s {'fast' if ahead > 0 else 'slow'}: signing by "
        "the metadata service's",
        file=sys.stderr,
    )
    parameter_helper.get_iso_8061_date = lambda: time.strftime(
        "%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ahead)
    )


def _read_metadata(url: str) -> tuple[str, str, dict[str, str], float]:
    """Return instance id, region, the credentials of the instance's role, and the time there."""
    metadata = Metadata("aliyun", url, timeout=TIMEOUT)
    try:
        instance = metadata.need("instance-id")
        instance_id = instance.text.strip()
        region = metadata.need("region-id").text.strip()
        names = metadata.get("ram/security-credentials/")
        if names is None or not names.text.strip():
            raise StopFailed(
                "it has no instance role; `qwenctl provision --apply` makes and attaches one"
            )
        role = names.text.strip().splitlines()[0]
        found = json.loads(metadata.need(f"ram/security-credentials/{role}").text)
    except NoMetadata as error:
        raise StopFailed(f"the metadata service gave no answer: {error}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("Code") != "Success":
        raise StopFailed("the metadata service gives no credentials for the instance's role")
    return instance_id, region, found, instance.now


if __name__ == "__main__":
    sys.exit(main())
