"""The last command of an abandoned node on Alibaba Cloud: it stops itself and its billing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from pytest_httpserver import URI_DEFAULT, HTTPServer
from werkzeug import Request, Response

from tests.support.fake_ecs import Cloud, FakeEcs, Key
from tests.support.fake_ecs.client import INSTANCE

ROLE_KEY = Key("STS.NodeRoleKey0000", "node-role-secret", "node-role-token")
TOKEN = "metadata-token-of-this-test"


class Metadata:
    """The metadata service in hardened mode: nothing without a token."""

    def __init__(self, http: HTTPServer) -> None:
        self.role = "qwenctl-node"
        self.url = http.url_for("")
        http.expect_request(URI_DEFAULT, method="PUT").respond_with_handler(self._token)
        http.expect_request(URI_DEFAULT, method="GET").respond_with_handler(self._value)

    def _token(self, request: Request) -> Response:
        seconds = request.headers.get("X-aliyun-ecs-metadata-token-ttl-seconds")
        return Response(TOKEN, 200 if seconds else 400)

    def _value(self, request: Request) -> Response:
        if request.headers.get("X-aliyun-ecs-metadata-token") != TOKEN:
            return Response("", 403)
        found = self.values().get(request.path.removeprefix("/latest/meta-data/"))
        return Response(found or "", 404 if found is None else 200)

    def values(self) -> dict[str, str]:
        values = {"instance-id": INSTANCE, "region-id": "cn-hangzhou"}
        if self.role:
            values["ram/security-credentials/"] = self.role
            values[f"ram/security-credentials/{self.role}"] = json.dumps(
                {
                    "Code": "Success",
                    "AccessKeyId": ROLE_KEY.id,
                    "AccessKeySecret": ROLE_KEY.secret,
                    "SecurityToken": ROLE_KEY.token,
                }
            )
        return values


@pytest.fixture
def metadata(httpserver: HTTPServer) -> Metadata:
    return Metadata(httpserver)


@pytest.fixture
def ecs() -> Iterator[FakeEcs]:
    with FakeEcs(Cloud(), keys=(ROLE_KEY,)) as fake:
        yield fake


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """Makes an endpoint answer everything with that status and body."""
    with HTTPServer() as server:

        def answer(status: int, body: str) -> str:
            server.expect_request(URI_DEFAULT).respond_with_data(body, status)
            return f"127.0.0.1:{server.port}"

        yield answer


def stop(metadata_url: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    options = ["--metadata", metadata_url, "--endpoint", endpoint, "--protocol", "http"]
    done = subprocess.run(
        [sys.executable, "-m", "gpu_node.aliyun_stop", *options],
        env={**os.environ, "DEBUG": "sdk"},  # the SDK then prints signed requests
        capture_output=True,
        text=True,
        timeout=60,
    )
    for secret in (ROLE_KEY.id, ROLE_KEY.secret, ROLE_KEY.token, TOKEN, "SignatureNonce"):
        assert secret not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_it_stops_itself_in_economical_mode(metadata: Metadata, ecs: FakeEcs) -> None:
    instance = ecs.cloud.add(status="Running")
    done = stop(metadata.url, ecs.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert instance.stops == 1
    [call] = ecs.calls_of("StopInstance")
    assert (call["InstanceId"], call["StoppedMode"]) == (INSTANCE, "StopCharging")


def test_without_a_role_it_says_what_is_missing(metadata: Metadata, ecs: FakeEcs) -> None:
    metadata.role = ""
    done = stop(metadata.url, ecs.endpoint)
    assert (done.returncode, "no instance role" in done.stderr) == (1, True)


def test_a_role_that_may_not_is_told_of_the_policy(metadata: Metadata, ecs: FakeEcs) -> None:
    ecs.cloud.add(status="Running")
    ecs.fail("StopInstance", "error", code="Forbidden.RAM", status=403)
    done = stop(metadata.url, ecs.endpoint)
    assert (done.returncode, "qwenctl permissions aliyun --node" in done.stderr) == (1, True)


def test_a_wrong_signature_shows_no_part_of_what_was_signed(
    metadata: Metadata, ecs: FakeEcs
) -> None:
    ecs.cloud.add(status="Running")
    signed = f"POST&%2F&AccessKeyId%3D{ROLE_KEY.id}%26SecurityToken%3D{ROLE_KEY.token}"
    words = f"Specified signature is not matched. server string to sign is:{signed}"
    ecs.fail("StopInstance", "error", code="SignatureDoesNotMatch", message=words)
    done = stop(metadata.url, ecs.endpoint)
    assert done.returncode == 1
    assert "does not accept the credentials" in done.stderr
    assert "(SignatureDoesNotMatch, request " in done.stderr


def test_an_unknown_code_is_shown_and_the_words_are_not(metadata: Metadata, ecs: FakeEcs) -> None:
    ecs.cloud.add(status="Running")
    ecs.fail("StopInstance", "error", code="Unheard.Of", message=f"no: {ROLE_KEY.token}")
    done = stop(metadata.url, ecs.endpoint)
    assert (done.returncode, "refuses StopInstance (Unheard.Of, req" in done.stderr) == (1, True)


@pytest.mark.parametrize("status", [200, 403, 502])
def test_a_page_is_no_answer(metadata: Metadata, ecs: FakeEcs, status: int) -> None:
    ecs.cloud.add(status="Running")
    ecs.fail("StopInstance", "garbage", status=status, times=99)
    done = stop(metadata.url, ecs.endpoint)
    assert (done.returncode, "not the ECS API" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, "{}"), (200, "[]"), (200, "7"), (200, "null"), (400, "7"), (400, "[]"), (400, "{}")],
)
def test_json_of_somebody_else_is_no_answer(
    metadata: Metadata, status: int, body: str, answering: Callable[[int, str], str]
) -> None:
    done = stop(metadata.url, answering(status, body))
    assert (done.returncode, "not the ECS API" in done.stderr) == (1, True)


def test_a_cut_connection_shows_no_signed_address(metadata: Metadata, ecs: FakeEcs) -> None:
    ecs.cloud.add(status="Running")
    ecs.fail("StopInstance", "cut_before", times=99)
    assert stop(metadata.url, ecs.endpoint).returncode == 1


def test_on_another_machine(ecs: FakeEcs) -> None:
    done = stop(f"http://{ecs.endpoint}", ecs.endpoint)  # no metadata service answers there
    assert (done.returncode, "metadata service" in done.stderr) == (1, True)


_WITH_A_WRONG_CLOCK = """
import sys, time
now, utc = time.time, time.gmtime
time.time = lambda: now() + {off}
time.gmtime = lambda *when: utc(*when or (time.time(),))
from gpu_node.selfstop.aliyun import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("off", [-7200, 7200, -86400 * 300])
def test_a_wrong_clock_does_not_keep_it_on(metadata: Metadata, ecs: FakeEcs, off: int) -> None:
    """The API refuses what was signed at another time."""
    instance = ecs.cloud.add(status="Running")
    done = subprocess.run(
        [
            *(sys.executable, "-c", _WITH_A_WRONG_CLOCK.format(off=off)),
            *("--metadata", metadata.url, "--endpoint", ecs.endpoint, "--protocol", "http"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, instance.stops) == (0, 1), done.stderr
    told = re.search(r"clock is (\d+) s (fast|slow)", done.stderr)
    assert told
    assert int(told[1]) == pytest.approx(abs(off), abs=5)  # whole seconds, and what the call took
    assert told[2] == ("fast" if off > 0 else "slow")
