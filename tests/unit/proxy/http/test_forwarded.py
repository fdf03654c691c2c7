"""Whom proxies in front speak for: X-Forwarded-* and Forwarded (RFC 7239), and split cookies."""

from __future__ import annotations

import pytest

from proxy.data.headers import request_headers
from proxy.http.request import Request
from tests.unit.proxy.made import request

FRONTS = ("203.0.113.9", "10.0.0.0/8", "2001:db8:1::/48")
"""The peer of `made.request`, and further trusted proxies."""


def through(*headers: tuple[str, str], peer: str = "203.0.113.9") -> Request:
    return request("GET", "/", list(headers), peer=peer, trusted=FRONTS)


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, 10.0.0.7", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.0.0.7,10.0.0.8", "192.0.2.1"),
        ("192.0.2.1,", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("192.0.2.1:4711, 10.0.0.7:80", "192.0.2.1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("192.0.2.1, [2001:db8:1::5]:80", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, ::ffff:10.0.0.7", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.0.0.3, 10.0.0.7", "10.0.0.3"),  # a client inside
        ("unknown", "203.0.113.9"),
        ("6.6.6.6, unknown", "203.0.113.9"),
        ("6.6.6.6, x, 10.0.0.7", "10.0.0.7"),
        ("6.6.6.6, 192.0.2.1x", "203.0.113.9"),
        ("", "203.0.113.9"),
        (" , ", "203.0.113.9"),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_not_trusted(said: str, client: str) -> None:
    assert through(("X-Forwarded-For", said)).client == client


def test_lines_are_one_list() -> None:
    asked = through(("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1, 10.0.0.7"))
    assert asked.client == "192.0.2.1"


def test_peers_that_speak_ipv4_in_ipv6() -> None:
    """A socket for both families names an IPv4 peer so (RFC 4291 §2.5.5.2)."""
    asked = through(("X-Forwarded-For", "192.0.2.1"), peer="::ffff:203.0.113.9")
    assert asked.trusted_peer
    assert asked.client == "192.0.2.1"
    assert request(peer="::ffff:127.0.0.1").peer_is_loopback


@pytest.mark.parametrize(
    ("hops", "hosts", "host"),
    [
        ("", "gpu.example", "gpu.example"),
        ("", "evil.example, gpu.example", "gpu.example"),
        ("192.0.2.1", "evil.example, gpu.example", "gpu.example"),
        ("192.0.2.1, 10.0.0.7", "gpu.example, inner:8080", "gpu.example"),
        ("192.0.2.1, 10.0.0.7", "evil.example,gpu.example,inner:8080", "gpu.example"),
        ("6.6.6.6, 192.0.2.1, 10.0.0.7", "gpu.example:8443", "gpu.example:8443"),
        ("192.0.2.1", "gpu.example,", "gpu.example"),
        ("192.0.2.1", "", "me"),
        ("192.0.2.1", ",", "me"),
    ],
)
def test_the_host_is_what_the_outermost_trusted_proxy_got(hops: str, hosts: str, host: str) -> None:
    for_ = [("X-Forwarded-For", hops)] if hops else []
    assert through(*for_, ("X-Forwarded-Host", hosts)).host == host


@pytest.mark.parametrize(
    ("said", "proto"),
    [
        ("https", "https"),
        ("HTTPS", "https"),
        ("https, http", "https"),
        ("http, https", "https"),
        ("https,https", "https"),
        ("wss", "https"),
        ("ws", "http"),
        ("http", "http"),
        ("gopher", "http"),
        ("", "http"),
    ],
)
def test_the_scheme(said: str, proto: str) -> None:
    asked = through(("X-Forwarded-Proto", said))
    assert asked.proto == proto
    assert request_headers(asked)["X-Forwarded-Proto"] == proto


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("for=192.0.2.1;proto=https;host=gpu.example", ("192.0.2.1", "gpu.example", "https")),
        ('For="[2001:db8::1]:4711"; Proto=HTTPS', ("2001:db8::1", "me", "https")),
        ('for=192.0.2.1;host="gpu.example:8443"', ("192.0.2.1", "gpu.example:8443", "http")),
        ("for=6.6.6.6;host=evil;proto=https, for=192.0.2.1", ("192.0.2.1", "me", "http")),
        ("host=evil;, for=192.0.2.1", ("192.0.2.1", "me", "http")),
        (
            "for=192.0.2.1;host=gpu.example;proto=https, for=10.0.0.7;proto=http",
            ("192.0.2.1", "gpu.example", "https"),
        ),
        ('for="192.0.2.1:80",,for=10.0.0.7 ,', ("192.0.2.1", "me", "http")),
        ('for="\\192.0.2.1"', ("192.0.2.1", "me", "http")),
        ("for=unknown;proto=https", ("203.0.113.9", "me", "https")),
        ("for=_hidden, for=10.0.0.7", ("10.0.0.7", "me", "http")),
        ("for=192.0.2.1;for=6.6.6.6", ("203.0.113.9", "me", "http")),
        ('for=", for=192.0.2.1;host="gpu"', ("203.0.113.9", "me", "http")),
        ('for="6.6.6.6, for=192.0.2.1', ("203.0.113.9", "me", "http")),
        ("192.0.2.1", ("203.0.113.9", "me", "http")),
        ("", ("203.0.113.9", "me", "http")),
    ],
)
def test_forwarded(said: str, expected: tuple[str, str, str]) -> None:
    asked = through(("Forwarded", said))
    assert (asked.client, asked.host, asked.proto) == expected


def test_forwarded_of_a_client_is_not_read_where_the_proxy_speaks_otherwise() -> None:
    forged = ("Forwarded", "for=6.6.6.6;host=evil.example;proto=https")
    asked = through(("X-Forwarded-For", "192.0.2.1"), forged)
    assert (asked.client, asked.host, asked.proto) == ("192.0.2.1", "me", "http")
    assert "Forwarded" not in request_headers(asked)
    stranger = request("GET", "/", [forged])
    assert (stranger.client, stranger.host, stranger.proto) == ("203.0.113.9", "me", "http")


def test_the_node_is_told_in_one_language() -> None:
    made = request_headers(
        through(("Forwarded", 'for="[2001:db8::1]:1";proto=https, for=10.0.0.7'))
    )
    assert made["X-Forwarded-For"] == "2001:db8::1, 10.0.0.7, 203.0.113.9"
    assert made["X-Forwarded-Proto"] == "https"
    lists = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Host", "evil.example, gpu.example")]
    assert request_headers(through(*lists))["X-Forwarded-Host"] == "gpu.example"


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Real-IP", "Via"],
)
def test_what_a_proxy_has_passed_on_is_not_of_this_machine(header: str) -> None:
    assert not request("GET", "/", [(header, "x")], peer="127.0.0.1").peer_is_loopback


@pytest.mark.parametrize("trusted", [(), FRONTS])
def test_a_cookie_in_several_lines(trusted: tuple[str, ...]) -> None:
    """As HTTP/2 sends it, and as many a proxy passes it on (RFC 9113 §8.2.3)."""
    lines = [
        ("Cookie", "a=1"),
        ("Accept", "*/*"),
        ("cookie", "qwenctl_session=s"),
        ("Cookie", "b=2"),
    ]
    asked = request("GET", "/", lines, trusted=trusted)
    assert (asked.cookie("a"), asked.cookie("qwenctl_session"), asked.cookie("b")) == (
        "1",
        "s",
        "2",
    )
    assert request_headers(asked).getall("Cookie") == ["a=1; b=2"]
