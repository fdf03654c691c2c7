"""A boot that lasts longer than the time-outs of a minute that servers in front usually have."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.integration.proxy.front.test_documented_fronts import (
    FRAMINGS,
    FRONTS,
    HEADERS,
    body_of,
    fronted,
    pieces,
)
from tests.integration.proxy.running import gpu, password_access

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LONG" not in os.environ, reason="make test-long runs it"),
]


@pytest.mark.parametrize("name", FRONTS)
def test_a_request_waits_for_a_boot_of_70_seconds(name: str, tmp_path: Path) -> None:
    gpus = {"main": gpu(preset="generic", local={"boot_seconds": 70, "stop_seconds": 0.05})}
    with fronted(name, tmp_path, gpu=gpus, access=password_access()) as front:

        def ask(size: tuple[int, str]) -> tuple[int, float, str]:
            body = body_of(size[0])
            answer = requests.post(
                front.url("/held"),
                data=body if size[1] == "length" else pieces(body),
                headers=HEADERS,
                timeout=120,
            )
            return answer.status_code, answer.elapsed.total_seconds(), answer.json()["sha256"]

        sizes = [(megabytes, framing) for megabytes in (0, 2, 20) for framing in FRAMINGS]
        with ThreadPoolExecutor(len(sizes)) as threads:
            answers = list(threads.map(ask, sizes))
    assert [(status, digest) for status, _, digest in answers] == [
        (200, hashlib.sha256(body_of(size)).hexdigest()) for size, _ in sizes
    ]
    assert min(seconds for _, seconds, _ in answers) > 65
