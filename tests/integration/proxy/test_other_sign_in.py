"""Visitors signed in by an installed third party's authenticator, through the real proxy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.integration.proxy.running import RunningProxy, gpu, password_access, running
from tests.support.paths import ROOT
from tests.support.waiting import until

INSTALLED = {"PYTHONPATH": str(ROOT / "tests" / "support" / "other_sign_in")}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    access = {
        "mode": "password",
        "keys": password_access()["keys"],
        "authenticators": {"raises": {}, "trusted-header": {"header": "X-User"}},
    }
    with running(
        tmp_path_factory.mktemp("other_sign_in"),
        env=INSTALLED,
        access=access,
        proxy={"trusted_proxies": ["127.0.0.1"]},
        gpu={"main": gpu(preset="generic")},
    ) as made:
        yield made


def test_it_signs_a_visitor_in(proxy: RunningProxy) -> None:
    url, anna = proxy.url("/hello"), {"X-User": "anna"}
    assert requests.post(url, json={}, timeout=10).status_code == 401
    assert requests.post(url, json={}, headers={"X-User": ""}, timeout=10).status_code == 401
    status = requests.get(proxy.url("/_qwenctl/api/status"), headers=anna, timeout=10).json()
    assert status["may_wake"] is True
    assert requests.post(url, json={}, headers=anna, timeout=30).status_code == 200
    assert "request:member:anna" in {lease.name for lease in proxy.snapshot().leases}
    assert "access.authenticators.raises has failed and lets nobody in" in proxy.log
    assert proxy.log.count("has failed") == 1


def test_scopes(proxy: RunningProxy) -> None:
    proxy.wake()
    for user, code in (("monitor", 403), ("guest", 200)):
        who = {"X-User": user}
        status = requests.get(proxy.url("/_qwenctl/api/status"), headers=who, timeout=10)
        assert status.json()["may_wake"] is False
        assert requests.post(proxy.url("/x"), json={}, headers=who, timeout=10).status_code == code
        wake = requests.post(proxy.url("/_qwenctl/api/wake"), headers=who, timeout=10)
        assert (wake.status_code, wake.json()["code"]) == (403, "may_not_wake")

    def leases() -> set[str]:
        return {lease.name for lease in proxy.snapshot().leases}

    until(lambda: "request:visitors/member:guest" in leases(), 5, "the guest's lease")
    assert not [name for name in leases() if "monitor" in name]


def test_a_proxy_whose_authenticator_is_missing_does_not_start(tmp_path: Path) -> None:
    access = {"mode": "password", "authenticators": {"trusted-header": {"header": "X-User"}}}
    with contextlib.ExitStack() as stack, pytest.raises(AssertionError) as ended:
        stack.enter_context(running(tmp_path, access=access))
    assert "error: access.authenticators.trusted-header: no such authenticator" in str(ended.value)
    assert "Traceback" not in str(ended.value)


def test_a_browser_that_nobody_knows_is_not_asked_for_a_password_that_there_is_not(
    proxy: RunningProxy,
) -> None:
    headers = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Accept-Language": "en"}
    page = requests.get(proxy.url("/some/page"), headers=headers, timeout=10)
    assert page.status_code == 403
    assert "sign in the way your team has set up" in page.text
    assert "/some/page" in page.text
    assert "<form" not in page.text
