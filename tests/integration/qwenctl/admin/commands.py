"""What the tests of the setting-up commands share: a fuller fake cloud, tables, findings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.fake_ecs import Cloud, FakeEcs
from tests.support.fake_ecs.client import INSTANCE
from tests.support.faults import Answered, Fault
from tests.support.moto_cloud import REGION

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Configure = Callable[..., Path]


class WholeCloud(Cloud):
    """The fake cloud, with what the setting-up commands stumble over."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Any] = {}
        """More fields of every instance."""
        self.blind = 0
        """How many looks to come find nothing, as right after a create."""

    def _do_DescribeInstances(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        answer = super()._do_DescribeInstances(parameters)
        if self.blind > 0:
            self.blind -= 1
            answer["Instances"] = {"Instance": []}
        return answer

    def _shown(self, instance: Any) -> dict[str, Any]:
        return {**super()._shown(instance), **self.shown}


def aliyun_table(ecs: FakeEcs, *, name: str = "main", more: str = "") -> str:
    return (
        f'[gpu.{name}]\nprovider = "aliyun"\n[gpu.{name}.aliyun]\nregion = "cn-hangzhou"\n'
        f'instance_id = "{INSTANCE}"\nendpoint = "{ecs.endpoint}"\n'
        f'ram_endpoint = "{ecs.endpoint}"\nprotocol = "http"\n{more}\n'
        f'[[gpu.{name}.service]]\ncommand = ["run"]\nport = 7860\n'
    )


def aws_table(url: str, instance_id: str, *, name: str = "main", more: str = "") -> str:
    return (
        f'[gpu.{name}]\nprovider = "aws"\n[gpu.{name}.aws]\nregion = "{REGION}"\n'
        f'instance_id = "{instance_id}"\nendpoint_url = "{url}"\n{more}\n'
        f'[[gpu.{name}.service]]\ncommand = ["run"]\nport = 7860\n'
    )


def findings(done: subprocess.CompletedProcess[str], gpu: str = "main") -> dict[str, Any]:
    """`doctor --json` by check: the deployment's and those of one GPU."""
    assert done.stdout, done.stderr
    found = [one for one in json.loads(done.stdout)["checks"] if one["gpu"] in ("", gpu)]
    for one in found:
        assert bool(one["fix"]) == (one["level"] != "ok"), one
    return {one["check"]: one for one in found}


def spot_answers(instance_id: str, kind: str, behavior: str) -> list[Fault]:
    """EC2's answers about a spot instance, whose request moto does not show."""
    about = (
        f"<instanceId>{instance_id}</instanceId><instanceType>g5.xlarge</instanceType>"
        "<instanceState><code>80</code><name>stopped</name></instanceState>"
        "<privateIpAddress>10.0.0.7</privateIpAddress><rootDeviceType>ebs</rootDeviceType>"
        "<instanceLifecycle>spot</instanceLifecycle>"
        "<spotInstanceRequestId>sir-0123</spotInstanceRequestId>"
    )
    request = (
        f"<spotInstanceRequestId>sir-0123</spotInstanceRequestId><type>{kind}</type>"
        f"<instanceInterruptionBehavior>{behavior}</instanceInterruptionBehavior>"
    )
    shutdown = (
        "<instanceInitiatedShutdownBehavior><value>stop</value></instanceInitiatedShutdownBehavior>"
    )
    bodies = {
        "DescribeInstances": "<reservationSet><item><instancesSet><item>"
        f"{about}</item></instancesSet></item></reservationSet>",
        "DescribeSpotInstanceRequests": "<spotInstanceRequestSet><item>"
        f"{request}</item></spotInstanceRequestSet>",
        "DescribeInstanceAttribute": shutdown,
    }
    asked = "<requestId>0f3b1f5c-0000-4000-8000-000000000000</requestId>"  # each answer has one
    return [
        Fault.error(
            Answered(200, f"<{action}Response>{asked}{body}</{action}Response>".encode()), action
        )
        for action, body in bodies.items()
    ]
