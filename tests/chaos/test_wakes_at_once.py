"""However many visitors come at the same moment, to whichever replica: one start."""

from __future__ import annotations

import pytest

from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.net import post_all


@pytest.mark.parametrize("clients", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_wakes_at_the_same_instant_start_once(deploy: Deploy, clients: int) -> None:
    gpu = {"idle_timeout": 20, "local": {"boot_seconds": 1.0}}
    deployment = deploy(replicas=3, gpus={"main": gpu}).start()
    urls = []
    for number in range(clients):
        base = deployment.proxies[number // 3 % 3].url
        # Two of three are held until ready, the third one is a waiting page's wake.
        urls.append(f"{base}/_qwenctl/api/wake" if number % 3 == 2 else f"{base}/count?n={number}")
    answers = post_all([*urls, urls[0].replace("n=0", "n=last")])

    wrong = [answer for answer in answers if answer.status not in (200, 202)]
    assert not wrong, wrong[:5]
    held = [answer.status for url, answer in zip(urls, answers) if "/count" in url]
    assert set(held) == {200}
    deployment.wait_phase(Phase.READY)
    instance = deployment.instance()
    assert len(instance.starts) == 1
    assert len(instance.boots) == 1
    assert not instance.stops
    counted = [line["path"] for line in instance.journal if line["event"] == "begin"]
    assert len(counted) == len(set(counted)) == len(held) + 1  # each once, none twice
