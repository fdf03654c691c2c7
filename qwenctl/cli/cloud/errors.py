"""Exit codes of a cloud's refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qwenctl.clouds.base import Denied, NoCapacity, ProviderError, Throttled, Transient
from qwenctl.errors import ExitCode, UserError

_CODES = {
    Denied: ExitCode.DENIED,
    NoCapacity: ExitCode.NO_CAPACITY,
    Throttled: ExitCode.UNAVAILABLE,
    Transient: ExitCode.UNAVAILABLE,
}


@contextmanager
def raising_user_errors() -> Iterator[None]:
    """Turn a `ProviderError` into a `UserError` with the exit code of its kind."""
    try:
        yield
    except ProviderError as error:
        code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
        raise UserError(str(error), code) from None
