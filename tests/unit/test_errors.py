"""`qwenctl.errors`: the exit codes are an interface; these numbers never change."""

from __future__ import annotations

import pytest

from qwenctl.clouds.base import (
    Conflict,
    Denied,
    NoCapacity,
    NotFound,
    ProviderError,
    Throttled,
    Transient,
)
from qwenctl.errors import ConfigError, ExitCode, StoreAuthError, StoreUnavailable, UserError


def test_exit_codes() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "ERROR": 1,
        "USAGE": 2,
        "NO_CAPACITY": 3,
        "DENIED": 4,
        "TIMEOUT": 5,
        "FAILED": 6,
        "BLOCKED": 7,
        "UNAVAILABLE": 8,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError, 1), (ConfigError, 2), (StoreUnavailable, 8), (StoreAuthError, 4)],
)
def test_each_error_has_its_code(error: type[UserError], code: int) -> None:
    assert error("why").exit_code == code
    assert issubclass(error, UserError)
    assert str(error("why")) == "why"


def test_a_refused_password_is_also_a_store_that_cannot_be_used() -> None:
    assert issubclass(StoreAuthError, StoreUnavailable)


def test_provider_errors_have_codes_of_their_own() -> None:
    kinds = (NoCapacity, Throttled, Denied, NotFound, Conflict, Transient)
    assert [kind.code for kind in kinds] == [
        "no_capacity",
        "throttled",
        "denied",
        "not_found",
        "conflict",
        "transient",
    ]
    assert all(issubclass(kind, ProviderError) for kind in kinds)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "no stock"),
        ({"cloud_code": "OperationDenied.NoStock"}, "no stock (OperationDenied.NoStock)"),
        ({"request_id": "r-1"}, "no stock (request r-1)"),
        ({"cloud_code": "NoStock", "request_id": "r-1"}, "no stock (NoStock, request r-1)"),
    ],
)
def test_a_provider_error_says_what_the_clouds_support_will_ask(
    fields: dict[str, str], text: str
) -> None:
    assert str(NoCapacity("no stock", **fields)) == text
