"""Guesses of the password from everywhere, at a whole proxy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from proxy.auth.password import MOST_WAITING
from proxy.auth.throttle import IN_ALL
from tests.integration.proxy.running import (
    KEY,
    PASSWORD,
    RunningProxy,
    gpu,
    password_access,
    running,
)


def sign_in(proxy: RunningProxy, password: str, client: str = "") -> requests.Response:
    headers = {"X-Forwarded-For": client} if client else {}
    return requests.post(
        proxy.url("/_qwenctl/login"),
        data={"password": password},
        headers=headers,
        allow_redirects=False,
        timeout=30,
    )


def test_guesses_from_everywhere(tmp_path: Path) -> None:
    trusted = {"trusted_proxies": ["127.0.0.1"]}
    with running(tmp_path, gpu={"main": gpu()}, access=password_access(), proxy=trusted) as proxy:
        owner = sign_in(proxy, PASSWORD, "198.51.100.7")
        assert owner.status_code == 303
        clients = [f"10.0.{number}.7" for number in range(4 * IN_ALL)]
        with ThreadPoolExecutor(4 * MOST_WAITING) as pool:
            answers = list(pool.map(lambda client: sign_in(proxy, "a guess", client), clients))
        checked = [answer for answer in answers if answer.status_code == 403]
        refused = [answer for answer in answers if answer.status_code != 403]
        assert len(checked) <= IN_ALL + 15  # and one each 2 s
        assert {answer.status_code for answer in refused} <= {429, 503}
        assert all(1 <= int(answer.headers["Retry-After"]) <= 60 for answer in refused)
        # Who is in stays in, and the owner gets in from where they were before, or from here.
        assert sign_in(proxy, PASSWORD, "198.51.100.8").status_code == 303
        assert sign_in(proxy, PASSWORD).status_code == 303
        status = proxy.url("/_qwenctl/api/status")
        cookie = {"Cookie": owner.headers["set-cookie"].partition(";")[0]}
        for known in (cookie, {"X-API-Key": KEY}):
            assert requests.get(status, headers=known, timeout=5).status_code == 200
