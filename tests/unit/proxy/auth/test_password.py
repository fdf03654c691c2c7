"""Signing in: the password, keys, throttling."""

from __future__ import annotations

import hashlib
import time

import pytest
from argon2 import PasswordHasher

from proxy.auth.authenticator import AnyAddress, ApiKeys
from proxy.auth.password import SharedPassword, Throttle, Throttled
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


def test_the_password() -> None:
    shared = SharedPassword(CONFIG.password_hash)
    assert shared.check("secret", "client")
    assert not shared.check("Secret", "client")
    assert not shared.check("", "client")
    for _ in range(Throttle.PER_CLIENT - 2):
        assert not SharedPassword("no hash").check("secret", "client")
        assert not shared.check("wrong", "client")
    with pytest.raises(Throttled):
        shared.check("secret", "client")


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


def fail(throttle: Throttle, client: str) -> None:
    assert not throttle.attempt(client, lambda: False)


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
        assert throttle.attempt("a", lambda: True)


def test_a_failure_inside_counts_and_lets_the_next_one_try() -> None:
    throttle = Throttle()
    for _ in range(Throttle.PER_CLIENT):
        with pytest.raises(ZeroDivisionError):
            throttle.attempt("a", lambda: bool(1 / 0))
    with pytest.raises(Throttled):
        fail(throttle, "a")
    fail(throttle, "b")
