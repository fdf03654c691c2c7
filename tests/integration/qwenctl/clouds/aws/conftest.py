"""Lives of a GPU on moto's EC2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from qwenctl.clouds.aws.api import Account
from qwenctl.clouds.aws.provider import AwsProvider
from qwenctl.clouds.aws.settings import AwsConfig
from qwenctl.clouds.batch import Batch
from qwenctl.config.gpu import GpuConfig
from qwenctl.control.controller import Controller
from qwenctl.store.store import Store
from tests.integration.qwenctl.clouds.aws.lives import NEVER, Life, Live, Machine
from tests.simulation.puppets import GPU
from tests.simulation.world import Node
from tests.support.faults import FaultProxy
from tests.support.moto_cloud import CREDENTIALS, REGION, MotoCloud
from tests.support.virtual_time import VirtualClock


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MotoCloud]:
    with MotoCloud(tmp_path_factory.mktemp("moto") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def proxy(cloud: MotoCloud) -> Iterator[FaultProxy]:
    with FaultProxy(cloud.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def account(proxy: FaultProxy) -> Iterator[Account]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(variable)
        for variable, value in CREDENTIALS.items():
            patch.setenv(variable, value)
        account = Account(AwsConfig(region=REGION, endpoint_url=proxy.url, read_timeout=3))
        account.call_timeout = 60.0  # this machine may be busy
        account.describe(["i-00000000"])  # the client is built
        account.call_timeout = 10.0  # two seconds for further tries of a describe
        yield account


@pytest.fixture
def live(
    cloud: MotoCloud, proxy: FaultProxy, account: Account, store: Store, clock: VirtualClock
) -> Live:
    cloud.set(pending=NEVER, stopping=NEVER, no_capacity=0)

    def begin(*, state: str = "stopped", controllers: int = 1, **more: Any) -> Life:
        instance = cloud.new_instance(cloud.client(), state=state, PrivateIpAddress="10.1.2.3")
        proxy.forget()
        # Pauses after refusals are of the virtual time, too, and end with the life.
        account.looks = Batch(account.describe, window=0.0, clock=clock)
        machine = Machine(cloud, instance)
        node = Node(store, clock, machine, **more)  # type: ignore[arg-type]
        provider = AwsProvider(account, instance)
        made = [
            Controller(GPU, GpuConfig(idle_timeout=NEVER), store, provider, monotonic=clock)
            for _ in range(controllers)
        ]
        return Life(store, clock, cloud, proxy, machine, made, node)

    return begin
