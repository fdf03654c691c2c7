"""A cloud's refusal as the command line's error, with its exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qwenctl.errors import ExitCode, UserError

__all__ = ["raising_user_errors"]


@contextmanager
def raising_user_errors() -> Iterator[None]:
    """Turn a `ProviderError` into a `UserError`: no capacity is 3, denied 4, not answered 8, else 1."""
    from qwenctl.clouds.base import Denied, NoCapacity, ProviderError, Throttled, Transient

    try:
        yield
    except Denied as error:
        raise UserError(str(error), ExitCode.DENIED) from None
    except NoCapacity as error:
        raise UserError(str(error), ExitCode.NO_CAPACITY) from None
    except (Throttled, Transient) as error:
        raise UserError(str(error), ExitCode.UNAVAILABLE) from None
    except ProviderError as error:
        raise UserError(str(error)) from None
