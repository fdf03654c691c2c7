"""Where the AccessKey comes from, each in a process of its own: the SDK reads its environment once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_ecs import FakeEcs, Key
from tests.support.fake_ecs.client import INSTANCE
from tests.support.paths import ROOT

PERMANENT = Key("LTAI5tFakeKeyId00", "fake-secret-00")
TEMPORARY = Key("STS.NTfake", "temporary-secret", "token+of/one=hour")

DESCRIBE = """
import sys
from qwenctl.config.deployment import Config
from qwenctl.config.providers import make_provider
from qwenctl.clouds.base import ProviderError
table = dict(region="cn-hangzhou", instance_id=sys.argv[2], endpoint=sys.argv[1], protocol="http",
             connect_timeout=5, read_timeout=20)
config = Config.model_validate({"gpu": {"main": {"provider": "aliyun", "aliyun": table}}})
provider = make_provider("main", config.gpu["main"], config)
try:
    print(provider.describe().state.value)
    print(bool(provider.start().request_id))
except ProviderError as error:
    print(type(error).__name__, error)
"""

IN_A_NETWORK_OF_ITS_OWN = """
import json, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tests.support.fake_ecs import FakeEcs, Key

for command in ("ip link set lo up", "ip addr add 100.100.100.200/32 dev lo"):
    subprocess.run(command.split(), check=True)
key = Key(*sys.argv[1:4])
asked = []

class Metadata(BaseHTTPRequestHandler):
    def do_PUT(self):
        asked.append(self.path)
        self.answer(200, "token-1")
    def do_GET(self):
        asked.append(self.path)
        if self.headers.get("X-aliyun-ecs-metadata-token") != "token-1":
            self.answer(403, "the hardened mode needs a token")
        elif self.path == "/latest/meta-data/ram/security-credentials/":
            self.answer(200, "qwenctl-proxy")
        elif self.path == "/latest/meta-data/ram/security-credentials/qwenctl-proxy":
            self.answer(200, json.dumps({
                "Code": "Success", "AccessKeyId": key.id, "AccessKeySecret": key.secret,
                "SecurityToken": key.token, "Expiration": "2099-01-01T00:00:00Z"}))
        else:
            self.answer(404, "")
    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("100.100.100.200", 80), Metadata)
threading.Thread(target=server.serve_forever, daemon=True).start()
with FakeEcs(keys=(key,)) as fake:
    fake.cloud.add(sys.argv[5])
    done = subprocess.run([sys.executable, "-c", sys.argv[4], fake.endpoint, sys.argv[5]], timeout=60)
    print(json.dumps(asked))
"""


@pytest.fixture
def fake() -> Iterator[FakeEcs]:
    with FakeEcs(keys=(PERMANENT, TEMPORARY)) as endpoint:
        endpoint.cloud.add(INSTANCE)
        yield endpoint


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nobody's credentials but those given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ALIBABA_", "ALIYUN_"))}
    home_only = {"HOME": str(home), "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}
    return {**kept, **home_only, "PYTHONPATH": str(ROOT), **more}


def describe(fake: FakeEcs, home: Path, **env: str) -> tuple[str, str]:
    """What a process with that environment and home says, and what it says on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE, fake.endpoint, INSTANCE],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.stdout.strip(), done.stderr


def test_an_access_key_in_the_environment(fake: FakeEcs, tmp_path: Path) -> None:
    shown, errors = describe(
        fake,
        tmp_path,
        ALIBABA_CLOUD_ACCESS_KEY_ID=PERMANENT.id,
        ALIBABA_CLOUD_ACCESS_KEY_SECRET=PERMANENT.secret,
    )
    assert (shown, errors) == ("stopped\nTrue", "")
    assert "SecurityToken" not in fake.calls[-1]


def test_an_sts_token_in_the_environment(fake: FakeEcs, tmp_path: Path) -> None:
    shown, errors = describe(
        fake,
        tmp_path,
        ALIBABA_CLOUD_ACCESS_KEY_ID=TEMPORARY.id,
        ALIBABA_CLOUD_ACCESS_KEY_SECRET=TEMPORARY.secret,
        ALIBABA_CLOUD_SECURITY_TOKEN=TEMPORARY.token,
    )
    assert (shown, errors) == ("stopped\nTrue", "")
    assert fake.calls[-1]["SecurityToken"] == TEMPORARY.token


def test_an_sts_key_without_its_token_says_so(fake: FakeEcs, tmp_path: Path) -> None:
    shown, _ = describe(
        fake,
        tmp_path,
        ALIBABA_CLOUD_ACCESS_KEY_ID=TEMPORARY.id,
        ALIBABA_CLOUD_ACCESS_KEY_SECRET=TEMPORARY.secret,
    )
    assert shown.startswith("Denied the STS token is not valid")
    assert "MissingSecurityToken, request " in shown


def test_a_wrong_secret_says_so(fake: FakeEcs, tmp_path: Path) -> None:
    shown, errors = describe(
        fake,
        tmp_path,
        ALIBABA_CLOUD_ACCESS_KEY_ID=PERMANENT.id,
        ALIBABA_CLOUD_ACCESS_KEY_SECRET="not-the-secret",
    )
    assert shown.startswith("Denied Alibaba Cloud does not accept the AccessKey")
    assert PERMANENT.id not in shown + errors


def test_the_profile_of_the_aliyun_command_line(fake: FakeEcs, tmp_path: Path) -> None:
    file = tmp_path / ".aliyun" / "config.json"
    file.parent.mkdir()
    profile = {
        "name": "default",
        "mode": "AK",
        "access_key_id": PERMANENT.id,
        "access_key_secret": PERMANENT.secret,
        "region_id": "cn-hangzhou",
    }
    file.write_text(json.dumps({"current": "default", "profiles": [profile]}))
    assert describe(fake, tmp_path) == ("stopped\nTrue", "")


def test_the_profile_file(fake: FakeEcs, tmp_path: Path) -> None:
    file = tmp_path / "credentials.ini"
    file.write_text(
        "[default]\nenable = true\ntype = access_key\n"
        f"access_key_id = {PERMANENT.id}\naccess_key_secret = {PERMANENT.secret}\n"
    )
    shown = describe(fake, tmp_path, ALIBABA_CLOUD_CREDENTIALS_FILE=str(file))
    assert shown == ("stopped\nTrue", "")


def test_no_credentials_at_all_is_one_sentence(fake: FakeEcs, tmp_path: Path) -> None:
    shown, errors = describe(fake, tmp_path)
    assert shown.startswith("Denied no Alibaba Cloud credentials: set ALIBABA_CLOUD_ACCESS_KEY_ID")
    assert "RAM role" in shown
    assert errors == ""
    assert not fake.received


def can_make_networks() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "--map-root-user", "--net", "ip", "link", "set", "lo", "up"],
            capture_output=True,
            timeout=10,
        )
    except OSError:
        return False
    return done.returncode == 0


def in_a_network_of_its_own(
    home: Path, script: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    env = environment(home)
    del env["ALIBABA_CLOUD_ECS_METADATA_DISABLED"]
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", script, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not can_make_networks(), reason="this machine cannot make network namespaces")
def test_the_ram_role_of_this_machine_in_hardened_mode(tmp_path: Path) -> None:
    done = in_a_network_of_its_own(
        tmp_path,
        IN_A_NETWORK_OF_ITS_OWN,
        *(TEMPORARY.id, TEMPORARY.secret, TEMPORARY.token),
        *(DESCRIBE, INSTANCE),
    )
    *shown, asked = done.stdout.splitlines()
    assert (shown, done.stderr) == (["stopped", "True"], "")
    assert asked.count("security-credentials/qwenctl-proxy") == 1  # kept until it runs out


@pytest.mark.skipif(not can_make_networks(), reason="this machine cannot make network namespaces")
def test_no_metadata_service_is_no_credentials(tmp_path: Path) -> None:
    """As on a machine that is not in Alibaba Cloud."""
    done = in_a_network_of_its_own(tmp_path, DESCRIBE, "127.0.0.1:1", INSTANCE)
    assert done.stdout.startswith("Denied no Alibaba Cloud credentials")
    assert done.stderr == ""
