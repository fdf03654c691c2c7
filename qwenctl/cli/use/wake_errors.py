"""Exit codes of a wake that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenctl.errors import ExitCode, UserError

if TYPE_CHECKING:
    from qwenctl.core.lifecycle import Failure

__all__ = [
    "Blocked",
    "TimedOut",
    "wake_error",
]


class Blocked(UserError):
    exit_code = ExitCode.BLOCKED


class _NoCapacity(UserError):
    exit_code = ExitCode.NO_CAPACITY


class _Denied(UserError):
    exit_code = ExitCode.DENIED


class TimedOut(UserError):
    exit_code = ExitCode.TIMEOUT


class _Failed(UserError):
    exit_code = ExitCode.FAILED


_BY_CODE: dict[str, type[UserError]] = {"no_capacity": _NoCapacity, "denied": _Denied}


def wake_error(name: str, failure: Failure, more: str = "") -> UserError:
    """What to raise, with its exit code, for a GPU that did not come up."""
    from qwenctl.core.words import one_line

    text = f"{name} did not come up ({failure.code}): {one_line(failure.message)}{more}"
    return _BY_CODE.get(failure.code, _Failed)(text)
