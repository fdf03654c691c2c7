"""What is read from a request: who sends it, from where, and what passes on to the node."""

from __future__ import annotations

import pytest

from proxy.data.headers import request_headers, response_headers
from tests.unit.proxy.made import request


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True),  # no browser
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://me"}, False),
        ({"Origin": "http://me"}, True),
        ({"Origin": "http://ME"}, True),
        ({"Origin": "http://me:81"}, False),
        ({"Origin": "http://evil"}, False),
        ({"Origin": "http://me.evil"}, False),
        ({"Origin": "http://evil/me"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
    ],
)
def test_same_origin(headers: dict[str, str], same: bool) -> None:
    assert request("POST", "/", headers).same_origin is same


@pytest.mark.parametrize(
    ("host", "origin", "same"),
    [
        ("me:80", "http://me", True),
        ("me:443", "https://me", True),
        ("me:443", "http://me", False),
        ("me:8080", "http://me:8080", True),
        ("me:8080", "http://me:3000", False),
        ("[::1]:80", "http://[::1]", True),
        ("", "null", False),
        ("", "http://", False),
    ],
)
def test_ports_of_origins(host: str, origin: str, same: bool) -> None:
    headers = {"Host": host, "Origin": origin}
    assert request("POST", "/", headers).same_origin is same
    assert request("POST", "/", headers, trusted=("203.0.113.9",)).same_origin is same


def test_a_trusted_proxy_may_leave_the_port_out() -> None:
    headers = {"Host": "me", "Origin": "http://me:8081"}
    assert request("POST", "/", headers, trusted=("203.0.113.9",)).same_origin
    other = {"Host": "me", "Origin": "http://you:8081"}
    assert not request("POST", "/", other, trusted=("203.0.113.9",)).same_origin


@pytest.mark.parametrize(
    ("method", "headers", "page"),
    [
        ("GET", {"Accept": "text/html,*/*"}, True),
        ("HEAD", {"Accept": "text/html"}, True),
        ("GET", {"Accept": "*/*"}, False),
        ("GET", {}, False),
        ("POST", {"Accept": "text/html"}, False),
        ("GET", {"Accept": "text/html", "Sec-Fetch-Mode": "cors"}, False),
        ("GET", {"Accept": "*/*", "Sec-Fetch-Mode": "navigate"}, True),
    ],
)
def test_navigation(method: str, headers: dict[str, str], page: bool) -> None:
    assert request(method, "/", headers).is_navigation is page


SPOOFED = {
    "X-Forwarded-For": "1.1.1.1, 2.2.2.2",
    "X-Forwarded-Host": "outer",
    "X-Forwarded-Proto": "https",
}


def test_an_untrusted_peer_is_not_believed() -> None:
    asked = request("GET", "/", SPOOFED)
    assert (asked.client, asked.host, asked.proto) == ("203.0.113.9", "me", "http")
    assert not request("GET", "/", SPOOFED, peer="127.0.0.1").peer_is_loopback


def test_a_trusted_peer_is_believed() -> None:
    asked = request("GET", "/", SPOOFED, trusted=("203.0.113.0/24",))
    assert (asked.client, asked.host, asked.proto) == ("2.2.2.2", "outer", "https")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback(peer: str) -> None:
    assert request(peer=peer).peer_is_loopback


@pytest.mark.parametrize(
    ("host", "name"),
    [("a.b:80", "a.b"), ("A.b", "a.b"), ("[::1]:80", "::1"), ("1.2.3.4", "1.2.3.4"), ("", "")],
)
def test_hostname(host: str, name: str) -> None:
    assert request("GET", "/", {"Host": host}).hostname == name


@pytest.mark.parametrize(
    "host", ["[::1", "a b", "[x]:80", "a:b:c", "\xff\xfe", "@", "//", "[", "]", "%00", "a]b"]
)
def test_any_host_header_gives_a_name_and_no_crash(host: str) -> None:
    assert isinstance(request("GET", "/", {"Host": host}).hostname, str)
    assert isinstance(request("GET", "/", {"Origin": f"http://{host}"}).same_origin, bool)


def passed(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    own = {"host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}
    made = list(request_headers(request("GET", "/", headers)).items())
    return [(name.lower(), value) for name, value in made if name.lower() not in own]


@pytest.mark.parametrize(
    ("cookie", "left"),
    [
        ("a=1; qwenctl_session=s", "a=1"),
        ("qwenctl_session=s; a=1", "a=1"),
        ("a=1;qwenctl_session=s;b=2", "a=1;b=2"),
        ("a=1; qwenctl_session=s; b=2", "a=1; b=2"),
        ("a=1; qwenctl_session=s; qwenctl_session=t; b=2", "a=1; b=2"),
        ("a=qwenctl_session; x_qwenctl_session=1", "a=qwenctl_session; x_qwenctl_session=1"),
        ('a=1;  b="x; y"', 'a=1;  b="x; y"'),
        ("qwenctl_session=s", None),
        ("qwenctl_session = s", None),
    ],
)
def test_our_cookie_alone_is_taken_out(cookie: str, left: str | None) -> None:
    assert passed([("Cookie", cookie)]) == ([("cookie", left)] if left is not None else [])


@pytest.mark.parametrize(
    ("header", "stays"),
    [
        (("Authorization", "Bearer qk_x"), False),
        (("Authorization", "bearer  qk_x"), False),
        (("X-API-Key", "qk_x"), False),
        (("Authorization", "Bearer sk-qk_x"), True),
        (("Authorization", "Basic cWtfOng="), True),
        (("X-API-Key", "other"), True),
    ],
)
def test_our_keys_alone_are_taken_out(header: tuple[str, str], stays: bool) -> None:
    assert bool(passed([header])) is stays


def test_two_keys_of_ours_are_both_taken_out() -> None:
    assert passed([("X-API-Key", "qk_a"), ("Authorization", "Bearer qk_b")]) == []


def test_expect_is_answered_here() -> None:
    assert passed([("Expect", "100-continue")]) == []


def test_a_not_modified_has_no_length() -> None:
    raw = [(b"Content-Length", b"9"), (b"ETag", b"x")]
    assert response_headers(raw, 304) == [(b"etag", b"x")]
    assert response_headers(raw, 200) == [(b"content-length", b"9"), (b"etag", b"x")]
