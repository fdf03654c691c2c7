"""A web app on another site that uses the GPU from Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from qwenctl.core.phase import Phase
from tests.e2e.browsing import Tab
from tests.support.deployment import Deployment

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

FETCH = """async ([url, credentials]) => {
  try {
    const answer = await fetch(url, {
      method: "POST", body: "{}", credentials,
      headers: {"Content-Type": "application/json", "X-Stainless-Lang": "js"},
    });
    const body = await answer.json();
    return [answer.status, body.code || "", answer.headers.get("retry-after")];
  } catch (error) { return [0, String(error), null]; }
}"""


@pytest.fixture
def sites(httpserver: HTTPServer) -> tuple[str, str]:
    """Two sites on this machine: a browser asks before a public site may reach it."""
    httpserver.expect_request("/").respond_with_data("<p>an app", content_type="text/html")
    return f"http://app.localhost:{httpserver.port}", f"http://other.localhost:{httpserver.port}"


@pytest.fixture
def product(chromium: str, tmp_path: Path, sites: tuple[str, str]) -> Iterator[Deployment]:
    settings = {"proxy": {"cors_origins": [sites[0]]}}
    deployment = Deployment(tmp_path, name="cors", settings=settings)
    try:
        yield deployment.start()
    finally:
        deployment.close()


def posted(tab: Tab, url: str, credentials: str = "omit") -> Any:
    """Status, code and Retry-After that a script of the page gets; status 0 if nothing."""
    return tab.page.evaluate(FETCH, [url, credentials])


def test_a_configured_site_wakes_it_and_reads_answers_and_errors(
    product: Deployment, sites: tuple[str, str], open_tab: Callable[..., Tab]
) -> None:
    app, other = open_tab(), open_tab()
    for tab, site in zip((app, other), sites):
        tab.page.goto(site)
    url = f"{product.proxies[0].url}/count"

    assert posted(other, url)[0] == 0
    assert product.store.snapshot("main").phase is Phase.OFF
    product.store.block("main", "maintenance:eve", 90.0, reason="a new disk", actor="eve")
    status, code, again = posted(app, url)
    assert (status, code) == (503, "blocked")
    assert 0 < int(again) <= 90
    product.store.unblock("main", actor="eve")
    for credentials in ("omit", "include"):
        assert posted(app, url, credentials)[0] == 200
    assert product.store.snapshot("main").phase is Phase.READY
    assert posted(other, url)[0] == 0
