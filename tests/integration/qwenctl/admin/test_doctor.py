"""`qwenctl doctor` tells a working deployment from each way in which one does not work."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pytest_httpserver import URI_DEFAULT, HTTPServer

from qwenctl.clouds.check_steps import clock_with_cloud
from qwenctl.core.lifecycle import Move
from qwenctl.core.phase import Phase
from qwenctl.protocol.messages import Hello
from qwenctl.store.store import Store
from tests.integration.qwenctl.admin.commands import (
    Configure,
    Run,
    WholeCloud,
    aliyun_table,
    aws_table,
    findings,
    spot_answers,
)
from tests.support.fake_ecs import FakeEcs
from tests.support.faults import Fault, FaultProxy, ec2_error
from tests.support.moto_cloud import MotoCloud
from tests.support.net import free_ports


@pytest.fixture
def proxy_url() -> Iterator[str]:
    """What the check of the node URLs needs of a proxy, at an address that is no loopback."""

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            server = HTTPServer(probe.getsockname()[0])
        server.start()
    except OSError:
        pytest.skip("this machine cannot be reached but on loopback")
    healthz = re.compile(".*/_qwenctl/healthz.*")
    server.expect_request(healthz).respond_with_json({"status": "ok", "version": "0"})
    server.expect_request(URI_DEFAULT).respond_with_data("x")
    yield server.url_for("")
    server.stop()


# All is well


def test_a_sound_deployment_on_alibaba_cloud(
    run: Run, ecs: FakeEcs, configure: Configure, proxy_url: str
) -> None:
    instance = ecs.cloud.add(ram_role="qwenctl-node-i-bp1fake0001")
    configure(aliyun_table(ecs), node_url=proxy_url)
    done = run("doctor", "--json")
    found = findings(done)
    assert done.returncode == 0, done.stdout
    assert found["role"]["found"].startswith("qwenctl-node-i-bp1fake0001;")
    assert {one["level"] for one in found.values()} == {"ok"}, found
    assert found["credentials"]["found"] == "from environment variables"
    assert "ecs:StartInstance" in found["may start"]["found"]
    assert {"redis", "redis clock", "cloud clock", "billing", "address", "node"} <= set(found)
    assert (instance.starts, instance.stops) == (0, 0)
    assert all(call["DryRun"] == "true" for call in ecs.calls_of("StartInstance"))
    assert len(ecs.calls_of("StopInstance")) == 1


def test_a_sound_deployment_on_aws(
    run: Run, moto: MotoCloud, configure: Configure, proxy_url: str
) -> None:
    id_ = moto.new_instance(moto.client())
    configure(aws_table(moto.url, id_), node_url=proxy_url)
    done = run("doctor", "--json")
    found = findings(done)
    assert done.returncode == 0, done.stdout
    doubted = {name for name, one in found.items() if one["level"] != "ok"}
    assert doubted == {"may start", "may stop"}, found
    assert "allows every dry run" in found["may stop"]["found"]  # moto proves nothing
    assert found["credentials"]["found"] == "from environment variables"
    assert found["shutdown"]["found"].startswith("a shutdown from inside stops")
    assert (moto.journal(id_, "start"), moto.journal(id_, "stop")) == (0, 0)
    assert moto.state(id_) == "stopped"


def test_the_local_provider(run: Run, configure: Configure, tmp_path: Path) -> None:
    configure(
        '[gpu.main]\n[[gpu.main.service]]\ncommand = ["sleep", "1"]\n',
        node_url=f"http://127.0.0.1:{free_ports(1)[0]}",
    )
    done = run("doctor", "--json", QWENCTL_PROXY__LISTEN="127.0.0.1:0")
    found = findings(done)
    assert done.returncode == 0, found
    assert found["command"]["found"] == "webui: sleep"
    assert found["provider"]["found"] == "local says the instance is stopped"
    assert found["node url"]["level"] == "warn"  # nothing listens there; loopback is right here
    assert "qwenctl serve" in found["node url"]["fix"]


# For people


def test_the_table_says_what_to_do(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add(local_disks=1)
    configure(aliyun_table(ecs), node_url="http://127.0.0.1:8080")
    done = run("doctor", COLUMNS="100")
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("FAIL  main  billing"))
    assert "does not end billing" in lines[at]
    assert lines[at + 1].strip().startswith("→ qwenctl does not start it.")
    assert lines[-1].startswith("2 of these would keep a GPU from working")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_only_where_they_are_wanted(
    run: Run, ecs: FakeEcs, configure: Configure, no_color: str
) -> None:
    ecs.cloud.add()
    configure(aliyun_table(ecs), node_url="http://127.0.0.1:8080")
    done = run("doctor", NO_COLOR=no_color, FORCE_COLOR="1", TERM="xterm")
    assert ("\x1b[3" in done.stdout) == (not no_color)


def test_without_a_gpu_it_says_so(run: Run, configure: Configure) -> None:
    configure("")
    done = run("doctor")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no GPU is configured" in done.stderr


def test_one_gpu_alone(run: Run, ecs: FakeEcs, moto: MotoCloud, configure: Configure) -> None:
    ecs.cloud.add()
    id_ = moto.new_instance(moto.client())
    configure(aliyun_table(ecs, name="a") + aws_table(moto.url, id_, name="b"))
    one = json.loads(run("doctor", "--gpu", "b", "--json").stdout)["checks"]
    assert {check["gpu"] for check in one} == {"", "b"}
    both = json.loads(run("doctor", "--json").stdout)["checks"]
    assert {check["gpu"] for check in both} == {"", "a", "b"}


# This machine


def test_a_lost_redis_is_named_and_the_rest_goes_on(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    ecs.cloud.add()
    configure(aliyun_table(ecs))
    done = run("doctor", "--json", QWENCTL_REDIS_URL=f"redis://:pw@127.0.0.1:{free_ports(1)[0]}")
    found = findings(done)
    assert done.returncode == 1
    assert found["redis"]["level"] == "fail"
    assert "pw@" not in done.stdout
    assert found["may stop"]["level"] == "ok"


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost:8080"])
def test_loopback_is_no_way_for_an_instance_in_a_cloud(
    run: Run, ecs: FakeEcs, configure: Configure, url: str
) -> None:
    ecs.cloud.add()
    configure(aliyun_table(ecs), node_url=url)
    found = findings(run("doctor", "--json"))
    assert found["node url"]["level"] == "fail"
    assert "proxy.node_urls" in found["node url"]["fix"]


def test_a_proxy_that_listens_on_loopback_is_not_found_by_nodes(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    ecs.cloud.add()
    [port] = free_ports(1)
    for listen, told in ((f"127.0.0.1:{port}", True), (f"0.0.0.0:{port}", False)):
        configure(aliyun_table(ecs), node_url=f"http://proxy.invalid:{port}")
        more = {"QWENCTL_PROXY__LISTEN": listen, "QWENCTL_PROXY__ALLOW_ANONYMOUS": "true"}
        found = findings(run("doctor", "--json", **more))["node url"]
        assert found["level"] == "warn"
        assert ("proxy.listen is 127.0.0.1" in found["found"]) == told
        assert ("access control" in found["fix"]) == told
    fronted = {"QWENCTL_PROXY__TRUSTED_PROXIES": '["127.0.0.1"]'}
    found = findings(run("doctor", "--json", **fronted))["node url"]
    assert "proxy.listen is" not in found["found"]


def test_something_else_at_the_node_url(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add()
    configure(
        '[gpu.main]\n[[gpu.main.service]]\ncommand = ["run"]\n', node_url=f"http://{ecs.endpoint}"
    )
    found = findings(run("doctor", "--json"))
    assert found["node url"]["found"].startswith("something else answers")


def test_secrets_that_others_can_read(
    run: Run, ecs: FakeEcs, configure: Configure, tmp_path: Path
) -> None:
    ecs.cloud.add()
    secret = tmp_path / "a b; touch x" / "node.secret"
    secret.parent.mkdir()
    secret.write_text("node-secret-of-this-test\n")
    secret.chmod(0o644)
    configure(aliyun_table(ecs), top=f'node_secret_file = "{secret}"')
    done = run("doctor", "--json")
    assert findings(done)["node secret"]["fix"] == f"Run `chmod 600 '{secret}'`."
    configure(aliyun_table(ecs), top='node_secret = "node-secret-of-this-test"')
    done = run("doctor", "--json")
    assert "in clear" in findings(done)["node secret"]["found"]
    assert "node-secret-of-this-test" not in done.stdout


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (120, "warn"), (-900, "fail")])
def test_the_clock_is_compared_with_the_cloud(seconds: float, level: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: Any = None) -> str:
            return formatdate(time.time() - seconds, usegmt=True)

        def do_GET(self) -> None:
            self.send_response(400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        [finding] = clock_with_cloud(f"http://127.0.0.1:{server.server_address[1]}/")
    finally:
        server.shutdown()
        server.server_close()
    assert finding.level.value == level
    if seconds:
        assert ("fast" if seconds > 0 else "slow") in finding.found


# Credentials and permissions


def test_aliyun_without_credentials(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add()
    configure(aliyun_table(ecs))
    done = run("doctor", "--json", ALIBABA_CLOUD_ACCESS_KEY_ID="")
    found = findings(done)
    assert found["credentials"]["found"] == "none found"
    assert "RAM role" in found["credentials"]["fix"]
    assert "instance" not in found  # it would only fail for the same reason
    assert done.stderr == ""


def test_aws_without_credentials(run: Run, moto: MotoCloud, configure: Configure) -> None:
    configure(aws_table(moto.url, "i-0123456789abcdef0"))
    done = run("doctor", "--json", AWS_ACCESS_KEY_ID="")
    assert findings(done)["credentials"]["found"] == "none found"


def test_aliyun_wrong_key(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add()
    configure(aliyun_table(ecs))
    done = run("doctor", "--json", ALIBABA_CLOUD_ACCESS_KEY_SECRET="wrong")
    found = findings(done)["instance"]
    assert (done.returncode, found["level"]) == (1, "fail")
    assert "does not accept the AccessKey" in found["found"]


@pytest.mark.parametrize("action", ["StartInstance", "StopInstance"])
def test_aliyun_permission_by_dry_run(
    run: Run, ecs: FakeEcs, configure: Configure, action: str
) -> None:
    ecs.cloud.add()
    ecs.fail(action, "error", code="Forbidden.RAM", status=403)
    configure(aliyun_table(ecs))
    done = run("doctor", "--json")
    found = findings(done)
    mine, other = ("may start", "may stop")[:: 1 if action == "StartInstance" else -1]
    assert (found[mine]["level"], found[other]["level"]) == ("fail", "ok")
    assert "Forbidden.RAM" in found[mine]["found"]
    assert "qwenctl permissions aliyun" in found[mine]["fix"]
    assert "billing" in found  # the rest is checked all the same


@pytest.mark.parametrize("action", ["StartInstances", "StopInstances"])
def test_aws_permission_by_dry_run(
    run: Run, moto: MotoCloud, ec2: FaultProxy, configure: Configure, action: str
) -> None:
    id_ = moto.new_instance(moto.client())
    text = "You are not authorized. Encoded authorization failure message: abcDEF0123"
    ec2.add(Fault.error(ec2_error("UnauthorizedOperation", text, 403), action))
    configure(aws_table(ec2.url, id_))
    found = findings(run("doctor", "--json"))
    mine, other = ("may start", "may stop")[:: 1 if action == "StartInstances" else -1]
    assert (found[mine]["level"], found[other]["level"]) == (
        "fail",
        "ok" if mine == "may start" else "warn",
    )
    assert "UnauthorizedOperation" in found[mine]["found"]
    assert "abcDEF0123" not in found[mine]["found"]
    assert "qwenctl permissions aws" in found[mine]["fix"]


def test_aws_may_not_look(run: Run, moto: MotoCloud, ec2: FaultProxy, configure: Configure) -> None:
    ec2.add(Fault.error(ec2_error("UnauthorizedOperation", "no", 403), "DescribeInstances"))
    configure(aws_table(ec2.url, "i-0123456789abcdef0"))
    found = findings(run("doctor", "--json"))
    assert found["instance"]["level"] == "fail"
    assert "may start" not in found


def test_no_such_instance(run: Run, ecs: FakeEcs, moto: MotoCloud, configure: Configure) -> None:
    configure(aliyun_table(ecs, name="a") + aws_table(moto.url, "i-0123456789abcdef0", name="b"))
    done = run("doctor", "--json")
    for gpu in ("a", "b"):
        found = findings(done, gpu)["instance"]
        assert (found["level"], f"[gpu.{gpu}." in found["fix"]) == ("fail", True)


def test_a_region_that_there_is_not(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add()
    ecs.fail("DescribeInstances", "error", code="InvalidRegionId.NotFound", status=404)
    configure(aliyun_table(ecs))
    found = findings(run("doctor", "--json"))["instance"]
    assert "there is no region cn-hangzhou" in found["found"]
    assert "check aliyun.region" in found["fix"].lower()


def test_an_endpoint_that_nobody_is_at(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    table = aliyun_table(ecs).replace(ecs.endpoint, f"127.0.0.1:{free_ports(1)[0]}")
    configure(table)
    found = findings(run("doctor", "--json"))
    assert found["endpoint"]["level"] == "fail"
    assert "refused" in found["endpoint"]["found"]


# Billing, addresses, spot


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"charge_type": "PrePaid"}, "subscription"),
        ({"vpc": False}, "classic network"),
        ({"local_disks": 1}, "local disks"),
        ({"type": "ecs.gn5-c4g1.xlarge"}, "local disks"),
    ],
)
def test_aliyun_instances_that_go_on_costing(
    run: Run, ecs: FakeEcs, configure: Configure, fields: dict[str, Any], words: str
) -> None:
    ecs.cloud.add(**fields)
    configure(aliyun_table(ecs))
    done = run("doctor", "--json")
    found = findings(done)["billing"]
    assert (found["level"], words in found["found"]) == ("fail", True)
    configure(aliyun_table(ecs, more="keep_charging = true"))
    assert findings(run("doctor", "--json"))["billing"]["level"] == "warn"


def test_aliyun_without_a_role(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add()
    configure(aliyun_table(ecs))
    found = findings(run("doctor", "--json"))
    assert found["role"]["level"] == "warn"
    assert "cannot stop itself" in found["role"]["found"]
    assert "qwenctl provision --apply" in found["role"]["fix"]
    ecs.fail("DescribeInstanceRamRole", "error", code="Forbidden.RAM", status=403)
    found = findings(run("doctor", "--json"))
    assert found["role"]["level"] == "warn"
    assert "ecs:DescribeInstanceRamRole" in found["role"]["found"]
    assert "qwenctl permissions aliyun" in found["role"]["fix"]
    assert found["billing"]["level"] == "ok"  # the rest is looked at all the same


def test_aliyun_stopped_and_billed(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add(stopped_mode="KeepCharging")
    configure(aliyun_table(ecs))
    found = findings(run("doctor", "--json"))["billing"]
    assert (found["level"], "billed all the same" in found["found"]) == ("warn", True)


def test_aliyun_without_stock(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add(in_stock=False)
    configure(aliyun_table(ecs))
    found = findings(run("doctor", "--json"))["may start"]
    assert (found["level"], "would fail now" in found["found"]) == ("warn", True)


def test_aliyun_spot_that_is_released(
    run: Run, ecs: FakeEcs, cloud: WholeCloud, configure: Configure
) -> None:
    cloud.add(spot_strategy="SpotAsPriceGo")
    configure(aliyun_table(ecs))
    assert findings(run("doctor", "--json"))["spot"]["level"] == "ok"
    cloud.shown["SpotInterruptionBehavior"] = "Terminate"
    assert findings(run("doctor", "--json"))["spot"]["level"] == "warn"


def test_aliyun_locked(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    ecs.cloud.add(locks=["financial"])
    configure(aliyun_table(ecs))
    found = findings(run("doctor", "--json"))
    assert "overdue" in found["lock"]["found"]
    assert found["may start"]["level"] == "fail"


def test_aliyun_addresses(run: Run, ecs: FakeEcs, configure: Configure) -> None:
    instance = ecs.cloud.add()
    configure(aliyun_table(ecs, more='address = "eip"'))
    assert findings(run("doctor", "--json"))["address"]["level"] == "fail"
    instance.eip = "47.96.0.9"
    assert findings(run("doctor", "--json"))["address"]["found"] == "47.96.0.9"


def test_aws_shutdown_that_destroys(run: Run, moto: MotoCloud, configure: Configure) -> None:
    id_ = moto.new_instance(moto.client(), InstanceInitiatedShutdownBehavior="terminate")
    configure(aws_table(moto.url, id_))
    found = findings(run("doctor", "--json"))["shutdown"]
    assert (found["level"], "terminate" in found["found"]) == ("fail", True)
    assert "qwenctl provision --apply" in found["fix"]


@pytest.mark.parametrize(
    ("kind", "behavior", "level"), [("persistent", "stop", "ok"), ("one-time", "terminate", "fail")]
)
def test_aws_spot(
    run: Run, ec2: FaultProxy, configure: Configure, kind: str, behavior: str, level: str
) -> None:
    for fault in spot_answers("i-0123456789abcdef0", kind, behavior):
        ec2.add(fault)
    configure(aws_table(ec2.url, "i-0123456789abcdef0"))
    assert findings(run("doctor", "--json"))["spot"]["level"] == level


# The node


def test_a_running_instance_is_reached_and_its_agent_heard(
    run: Run, ecs: FakeEcs, configure: Configure, client: Any, deployment: str
) -> None:
    ecs.cloud.add(status="Running", private_ip="127.0.0.1")
    port = free_ports(1)[0]
    table = aliyun_table(ecs).replace("7860", str(port))
    configure(table)
    found = findings(run("doctor", "--json"))
    assert found["node"]["level"] == "warn"  # nothing listens yet
    assert "qwenctl serve" in found["agent"]["fix"]  # nobody has taken the instance over
    store = Store(client, deployment)
    lock, _, _ = store.acquire("main", "test", 60)
    assert lock is not None
    step = Move(Phase.BOOTING, "found_running")
    store.transition("main", lock, Phase.OFF, step, drain=4, idle_timeout=600)
    found = findings(run("doctor", "--json"))
    assert found["agent"]["level"] == "fail"
    assert "journalctl -u qwenctl-node" in found["agent"]["fix"]
    assert store.hello(Hello(gpu="main", boot_id="0123456789abcdef"), "n" * 32)[0] == "ok"
    with socket.create_server(("127.0.0.1", port)):
        found = findings(run("doctor", "--json"))
    assert (found["node"]["level"], found["node"]["found"]) == (
        "ok",
        f"port {port} of 127.0.0.1 can be reached",
    )
    assert found["agent"]["level"] == "ok"


def test_a_node_address_that_nobody_answers_at(
    run: Run, ecs: FakeEcs, configure: Configure
) -> None:
    ecs.cloud.add(status="Running", private_ip="192.0.2.7")  # a network for documentation
    configure(aliyun_table(ecs))
    found = findings(run("doctor", "--json"))["node"]
    assert (found["level"], "security group" in found["fix"]) == ("fail", True)
