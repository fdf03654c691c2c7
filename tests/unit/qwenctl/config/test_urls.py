"""The URL at which visitors find a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from qwenctl.config.deployment import Config


def config(proxy: dict[str, Any], **gpus: dict[str, Any]) -> Config:
    return Config.model_validate({"proxy": proxy, "gpu": gpus})


@pytest.mark.parametrize(
    ("proxy", "hosts", "url"),
    [
        ({}, [], "http://127.0.0.1:8080"),
        ({}, ["b.lab"], "http://b.lab:8080"),
        ({"listen": "0.0.0.0:80"}, ["b.lab"], "http://b.lab:80"),
        ({"listen": "0.0.0.0:8080"}, [], "http://127.0.0.1:8080"),
        ({"listen": "[::]:8080"}, [], "http://[::1]:8080"),
        ({"public_url": "https://lab.example/"}, ["b.lab"], "https://b.lab"),
        ({"public_url": "https://lab.example:8443"}, ["b.lab"], "https://b.lab:8443"),
        ({"public_url": "https://B.lab"}, ["a.lab", "b.lab"], "https://B.lab"),
        ({"public_url": "https://lab.example"}, ["2001:db8::7"], "https://[2001:db8::7]"),
        ({"public_url": "https://lab.example"}, [], "https://lab.example"),
    ],
)
def test_the_url_leads_to_the_gpu(proxy: dict[str, Any], hosts: list[str], url: str) -> None:
    found = config(proxy, a={"hosts": ["first.lab"]}, b={"hosts": hosts})
    assert found.url_of("b") == url
    assert found.way_to("b") == ""
    host = url.partition("://")[2].lower()
    assert not hosts or any(host.startswith((own, f"[{own}]")) for own in hosts)


def test_a_tier_is_chosen_at_its_host() -> None:
    both = {"hosts": ["lab.example"]}
    found = config({}, small={**both, "tier": "speed"}, large={**both, "tier": "quality"})
    assert [found.url_of(name) for name in found.gpu] == ["http://lab.example:8080"] * 2
    assert found.way_to("small") == ""
    assert found.way_to("large") == "choose quality at /_qwenctl/tier"


def test_a_gpu_that_no_visitor_is_sent_to_says_so() -> None:
    found = config({}, one={}, two={})
    assert found.way_to("one") == ""
    assert "another GPU" in found.way_to("two")
