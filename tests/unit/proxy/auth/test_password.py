"""API keys, and visitors who need not sign in."""

from __future__ import annotations

import hashlib

import pytest
from argon2 import PasswordHasher

from proxy.auth.authenticator import AnyAddress, ApiKeys
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
