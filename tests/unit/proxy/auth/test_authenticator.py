"""The chain of authenticators: which counts, what each visitor may, broken ones of third parties."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import pytest
import redis

from proxy.auth import authenticator
from proxy.auth.authenticator import Authenticators
from proxy.data.admission import Action, decide, may_wake
from proxy.http.request import Request
from qwenctl.config.deployment import Config
from qwenctl.core.identity import USE, WAKE, WAKE_ALWAYS, Identity
from qwenctl.errors import ConfigError
from qwenctl.store.store import Store
from tests.support.paths import ROOT
from tests.unit.proxy.auth.test_password import CONFIG, KEY
from tests.unit.proxy.made import gpu, request, snapshot


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "support" / "other_sign_in")
    importlib.invalidate_caches()


def chain(
    store: Store | None = None, *, mode: str = "password", **others: dict[str, Any]
) -> Authenticators:
    access = {**CONFIG.model_dump(), "mode": mode, "authenticators": others}
    config = Config.model_validate({"node_secret": "s" * 20, "access": access})
    return Authenticators(config, store or Store(redis.Redis(), "never asked"))


def asked(**headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("GET", "/", named, peer="10.0.0.1", trusted=("10.0.0.1",))


def test_without_access_control_everybody_is_an_address() -> None:
    identity = chain(mode="none").identify(asked(x_api_key=KEY))
    assert identity == Identity(address="10.0.0.1")


@pytest.mark.parametrize(
    ("who", "name", "lease"),
    [
        (Identity(address="10.0.0.1"), "10.0.0.1", "request:10.0.0.1"),
        (Identity(session="ab12"), "ab12", "request:browser:ab12"),
        (Identity(key_id="ci"), "ci", "request:key:ci"),
        (Identity(member="anna", key_id="ci"), "ci", "request:key:ci"),
        (Identity(tenant="lab", member="anna"), "anna", "request:lab/member:anna"),
    ],
)
def test_names_of_leases(who: Identity, name: str, lease: str) -> None:
    assert (who.name, who.lease) == (name, lease)


@pytest.mark.parametrize("wake_on", ["visit", "click", "never"])
def test_what_scopes_permit(wake_on: str) -> None:
    """Forwarded, woken by a request, woken by the page."""
    settings, post = gpu(wake_on=wake_on, preset="generic"), asked(content_type="application/json")

    def may(*scopes: str) -> tuple[bool, bool, bool]:
        who = Identity(member="anna", scopes=frozenset(scopes))
        forwarded = decide(settings, post, who, snapshot("ready")).action is Action.FORWARD
        return forwarded, may_wake(settings, who), may_wake(settings, who, by_page=True)

    assert may() == (False, False, False)
    assert may(USE) == (True, False, False)
    assert may(USE, WAKE) == (True, wake_on == "visit", wake_on != "never")
    assert may(USE, WAKE_ALWAYS) == (True, True, True)
    visitor = Identity(member="anna", scopes=frozenset())
    assert decide(settings, post, visitor, snapshot("off")).action is Action.REFUSE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other", "no such authenticator is installed; known: no-method, no-module, raises"),
        ("no-module", "other_sign_in_missing:Any: ModuleNotFoundError: No module named"),
        ("no-method", "other_sign_in:no_method: AttributeError: 'object' object has no attribute"),
        ("trusted-header", "other_sign_in:TrustedHeader: KeyError: 'header'"),
    ],
)
def test_one_that_cannot_be_made_is_one_sentence(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        chain(**{name: {}})
    assert str(refused.value).startswith(f"access.authenticators.{name}: {text}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("raises", {}, "LookupError: the directory"),
        ("says-yes", {}, "no valid Identity"),
        ("says-yes", {"answer": ["anna"]}, "no valid Identity"),
        ("says-yes", {"answer": ""}, "no valid Identity"),
        ("says-yes", {"answer": "an\nna"}, "no valid Identity"),
        ("says-yes", {"answer": "a" * 201}, "no valid Identity"),
    ],
)
def test_one_that_fails_lets_nobody_in_and_says_so_once_a_minute(
    name: str, settings: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "qwenctl.proxy"):
        broken = chain(**{name: settings})
        for _ in range(3):
            assert broken.identify(asked()) is None
        assert broken.identify(asked(x_api_key=KEY)) == Identity(
            key_id="ci", scopes=frozenset({USE, WAKE_ALWAYS})
        )
    [line] = caplog.messages
    assert line.startswith(f"access.authenticators.{name} has failed and lets nobody in: ")
    assert said in line
    assert "\n" not in line
    assert authenticator.LOG_INTERVAL == 60.0


def test_it_needs_access_control() -> None:
    with pytest.raises(ValueError, match=r"access.authenticators needs access.mode = \"password\""):
        chain(mode="none", **{"trusted-header": {"header": "X-User"}})
