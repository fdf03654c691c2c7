"""The JSON API and forms of waiting pages, with the parts behind them played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from werkzeug.test import Client

from proxy.control.flask_app import make_flask
from proxy.http.request import networks
from qwenctl.config.deployment import Config
from tests.unit.proxy.made import BROWSER


class Site:
    """The application of a GPU ``main``, asked by a browser's page of the same site."""

    def __init__(self) -> None:
        self.waiting = Mock()
        config = Config.model_validate({"gpu": {"main": {"preset": "generic"}}})
        services = SimpleNamespace(
            config=config,
            trusted=networks(()),
            authenticators=SimpleNamespace(identify=lambda _: BROWSER),
        )
        stream = SimpleNamespace(status=lambda gpu, **_: {"gpu": gpu})
        self.client = Client(
            make_flask(cast("Any", services), cast("Any", stream), Mock(), self.waiting)
        )

    def ask(self, method: str, target: str) -> Any:
        path, _, query = target.partition("?")
        headers = [(b"host", b"me"), (b"sec-fetch-site", b"same-origin")]
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": headers,
            "client": ("203.0.113.9", 1234),
            "scheme": "http",
        }
        return self.client.open(target, method=method, environ_overrides={"asgi.scope": scope})


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.parametrize(("more", "watched"), [("", False), ("&visible=1", True)])
def test_a_page_that_polls_says_whether_it_is_visible(site: Site, more: str, watched: bool) -> None:
    assert site.ask("GET", f"/_qwenctl/api/status?gpu=main{more}").status_code == 200
    assert site.waiting.seen.call_args.kwargs == {"watched": watched}
