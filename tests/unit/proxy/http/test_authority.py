"""A request's host: named once, and the same in its target."""

from __future__ import annotations

import pytest

from proxy.http.authority import host_problem, with_path


@pytest.mark.parametrize(
    ("target", "hosts", "version", "refused"),
    [
        ("/x", ["a"], "1.1", False),
        ("/x", ["a.b:8080"], "1.1", False),
        ("/x", ["[::1]:80"], "1.1", False),
        ("/x", ["a:"], "1.1", False),
        ("/x", ["under_score.local"], "1.1", False),
        ("/x", ["xn--bcher-kva.example."], "1.1", False),
        ("/x", ["bücher.example"], "1.1", False),
        ("/x", [""], "1.1", False),
        ("/x", [], "1.0", False),
        ("/x", [], "1.1", True),
        ("/x", ["a", "a"], "1.1", True),
        ("/x", ["a", "b"], "1.0", True),
        ("/x", ["a, b"], "1.1", True),
        ("/x", ["a b"], "1.1", True),
        ("/x", ["user@a"], "1.1", True),
        ("/x", ["a/b"], "1.1", True),
        ("/x", ["http://a"], "1.1", True),
        ("http://a/x", ["a"], "1.1", False),
        ("HTTP://A/x", ["a"], "1.1", False),
        ("http://a:80/x", ["a"], "1.1", False),
        ("https://a/x", ["a:443"], "1.1", False),
        ("http://a?x", ["a"], "1.1", False),
        ("http://b/x", ["a"], "1.1", True),
        ("http://a:81/x", ["a"], "1.1", True),
        ("http://a@b/x", ["a"], "1.1", True),
        ("http://a@b/x", ["b"], "1.1", True),
        ("http://b/x", [], "1.0", True),
    ],
)
def test_hosts(target: str, hosts: list[str], version: str, refused: bool) -> None:
    headers = [(b"accept", b"*/*"), *((b"host", host.encode()) for host in hosts)]
    assert bool(host_problem(target.encode(), headers, version)) is refused


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/http://a", "/http://a"),
        ("*", "*"),
        ("http://a", "http://a/"),
        ("http://a/", "http://a/"),
        ("http://a/b?c", "http://a/b?c"),
        ("http://a?c", "http://a/?c"),
    ],
)
def test_a_target_without_a_path(target: str, path: str) -> None:
    assert with_path(target.encode()) == path.encode()
