"""Signing in: cookies, keys, throttling."""

from __future__ import annotations

import hashlib
import re
import time

import pytest
from argon2 import PasswordHasher

from proxy.auth.authenticator import AnyAddress, ApiKeys
from proxy.auth.password import SharedPassword
from proxy.auth.throttle import Throttle, Throttled
from proxy.http.cookies import SESSION_COOKIE, visit_slot
from qwenctl.config.deployment import AccessConfig, ApiKey
from tests.unit.proxy.made import request

QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
KEY = "qk_0123456789"


def access(password: str = "secret", session: float = 3600.0) -> AccessConfig:
    key = ApiKey(name="ci", hash="sha256:" + hashlib.sha256(KEY.encode()).hexdigest())
    return AccessConfig(
        mode="password", password_hash=QUICK.hash(password), keys=(key,), session=session
    )


CONFIG = access()


def signed_in(config: AccessConfig = CONFIG, secret: str = "s") -> str:
    cookie = SharedPassword(config, secret).sign_in("secret", "client")
    assert cookie
    return cookie


def who(cookie: str, config: AccessConfig = CONFIG, secret: str = "s") -> str | None:
    asked = request("GET", "/", {"Cookie": f"a=1; {SESSION_COOKIE}={cookie}; b=2"})
    identity = SharedPassword(config, secret).identify(asked)
    return identity.lease if identity else None


@pytest.mark.parametrize(
    ("cookie", "slot"),
    [
        ("", ""),
        ("a=1; qwenctl_visit=c; b=2", "c"),
        ("qwenctl_visit=0", "0"),
        ("xqwenctl_visit=c", ""),
        ("qwenctl_visit=cc", ""),
        ("qwenctl_visit=0123456789abcdef", ""),
        ("qwenctl_visit=C\n", ""),
    ],
)
def test_visitors_without_access_control_are_told_apart(cookie: str, slot: str) -> None:
    asked = request("GET", "/", {"Cookie": cookie})
    assert visit_slot(asked) == slot
    identity = AnyAddress().identify(asked)
    assert identity is not None
    assert (identity.lease, identity.name) == ("request:203.0.113.9", "203.0.113.9")


def test_the_right_password_gives_a_cookie_that_every_replica_takes() -> None:
    assert re.fullmatch("request:browser:[0-9a-f]{8}", who(signed_in()) or "")


def test_a_wrong_password_gives_none() -> None:
    assert SharedPassword(CONFIG, "s").sign_in("Secret", "client") is None
    assert SharedPassword(CONFIG, "s").sign_in("", "client") is None


def test_a_cookie_that_was_tampered_with() -> None:
    cookie = signed_in()
    for at in range(0, len(cookie), 3):
        changed = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
        # The last character of base64 may carry unused bits; every other change must count.
        if at < len(cookie) - 1:
            assert who(changed) is None, at
    for rubbish in ("", ".", "..", "a.b.c", cookie + "x", cookie[:-5], "é" * 50, "0" * 5000):
        assert who(rubbish) is None


def test_a_cookie_of_another_secret_or_password() -> None:
    assert who(signed_in(), secret="other") is None
    assert who(signed_in(), access("changed")) is None


def test_a_cookie_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = signed_in()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3590)
    assert who(cookie)
    monkeypatch.setattr(time, "time", lambda: now + 3602)
    assert who(cookie) is None


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": f"Bearer {KEY}"}, "ci"),
        ({"Authorization": f"bearer {KEY}"}, "ci"),
        ({"X-API-Key": KEY}, "ci"),
        ({"X-API-Key": KEY + "x"}, None),
        ({"X-API-Key": KEY[:-1]}, None),
        ({"Authorization": KEY}, None),
        ({"Authorization": f"Basic {KEY}"}, None),
        ({"Authorization": "Bearer "}, None),
        ({"Cookie": f"{SESSION_COOKIE}={KEY}"}, None),
    ],
)
def test_keys(headers: dict[str, str], name: str | None) -> None:
    identity = ApiKeys(CONFIG.keys).identify(request("GET", "/", headers))
    assert (identity and identity.name) == name
    assert (identity and identity.lease) == (name and f"request:key:{name}")


def test_two_browsers_are_two_clients() -> None:
    assert signed_in() != signed_in()


def fail(throttle: Throttle, client: str) -> None:
    with throttle.attempt(client):
        pass


def test_five_wrong_ones_a_minute_from_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    throttle, now = Throttle(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(Throttle.PER_CLIENT):
        fail(throttle, "a")
    with pytest.raises(Throttled) as refused:
        fail(throttle, "a")
    assert 0 < refused.value.seconds <= Throttle.WINDOW
    fail(throttle, "b")  # others may still try
    now[0] += Throttle.WINDOW + 0.1
    fail(throttle, "a")


def test_so_many_from_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    throttle = Throttle()
    for number in range(Throttle.IN_ALL):
        fail(throttle, f"client-{number}")
    fail(throttle, "fresh")  # nobody can lock the others out: one try each
    with pytest.raises(Throttled):
        fail(throttle, "fresh")


def test_right_ones_do_not_count() -> None:
    throttle = Throttle()
    for _ in range(50):
        with throttle.attempt("a") as attempt:
            attempt.succeeded()


def test_a_failure_inside_lets_the_next_one_try() -> None:
    throttle = Throttle()
    with pytest.raises(ZeroDivisionError), throttle.attempt("a"):
        raise ZeroDivisionError
    fail(throttle, "a")
