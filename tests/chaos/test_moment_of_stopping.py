"""Requests that come just when the GPU is being stopped are forwarded or wait for the next start.

The proxies' view is late on purpose. The webui counts what it was stopped in the middle of.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import aiohttp
import pytest

from qwenctl.core.events import Event
from qwenctl.core.phase import Phase
from tests.chaos.conftest import Deploy
from tests.support.deployment import Deployment
from tests.support.net import Answer, post

DRAIN = 3.0
VIEW_DELAY = 0.8


async def volley(
    http: aiohttp.ClientSession, deployment: Deployment, gpu: str, count: int, spread: float
) -> list[Answer]:
    """So many requests over both replicas, within so many seconds."""

    async def one(number: int) -> Answer:
        await asyncio.sleep(random.uniform(0.0, spread))
        url = deployment.proxies[number % 2].url
        seconds = random.choice([0.0, 0.0, 0.3])
        return await post(http, f"{url}/count?seconds={seconds}", host=f"{gpu}.localhost")

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def hammer(deployment: Deployment, gpu: str, seconds: float, count: int) -> list[Answer]:
    """Volleys around the moment at which the GPU would go from draining to stopping."""
    answers: list[Answer] = []
    end = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=40)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        answers += await volley(http, deployment, gpu, 2, 0.0)
        assert {answer.status for answer in answers} == {200}, answers
        while time.monotonic() < end:
            after = await asyncio.to_thread(deployment.last_event, gpu)
            draining: Event = await asyncio.to_thread(
                deployment.wait_transition, Phase.DRAINING, gpu=gpu, after=after
            )
            now = deployment.store.snapshot(gpu).now
            aim = draining.time + DRAIN - now + random.gauss(0.0, 0.1)
            await asyncio.sleep(max(0.0, aim - 0.05))
            answers += await volley(http, deployment, gpu, count, 0.1)
    return answers


def run(deploy: Deploy, gpus: int, seconds: float, count: int) -> tuple[Deployment, list[Answer]]:
    names = [f"g{number}.localhost" for number in range(gpus)]
    deployment = deploy(
        replicas=2,
        gpus={
            name.partition(".")[0]: {"idle_timeout": 1, "hosts": [name], "timing": {"drain": DRAIN}}
            for name in names
        },
        env={"QWENCTL_TEST_SNAPSHOT_DELAY": str(VIEW_DELAY)},
    ).start()

    async def all_of_them() -> list[Answer]:
        done = await asyncio.gather(
            *(hammer(deployment, name.partition(".")[0], seconds, count) for name in names)
        )
        return [answer for answers in done for answer in answers]

    return deployment, asyncio.run(all_of_them())


def check(deployment: Deployment, answers: list[Answer]) -> Counter[str]:
    wrong = [answer for answer in answers if answer.status != 200]
    assert not wrong, (len(wrong), wrong[:3])
    moves: Counter[str] = Counter()
    for gpu in deployment.config.gpu:
        deployment.wait_phase(Phase.OFF, gpu=gpu)
        instance = deployment.instance(gpu)
        instance.assert_nothing_cut()
        instance.assert_alternating()
        for event in deployment.store.events(gpu, 5000):
            if event.kind == "transition":
                moves[f"{event.fields['from']} -> {event.fields['to']}"] += 1
    return moves


def test_a_request_at_the_moment_of_stopping(deploy: Deploy) -> None:
    moves = check(*run(deploy, 1, 5.0, 20))
    assert moves["draining -> ready"] + moves["draining -> stopping"] >= 2


@pytest.mark.slow
def test_thousands_of_requests_at_the_moment_of_stopping(deploy: Deploy) -> None:
    deployment, answers = run(deploy, 6, 75.0, 50)
    moves = check(deployment, answers)
    # The volleys came on both sides of the moment.
    assert moves["draining -> ready"] >= 4, moves  # a busy machine hits the moment less often
    assert moves["draining -> stopping"] >= 10, moves
    assert len(answers) >= 2000
    print(len(answers), dict(moves))
