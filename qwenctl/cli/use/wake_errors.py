"""The error, with its exit code, for a wake that failed."""

from __future__ import annotations

from qwenctl.core import failures
from qwenctl.core.failures import Failure
from qwenctl.errors import ExitCode, UserError
from qwenctl.lib.text import one_line

__all__ = ["wake_error"]

_BY_CODE = {failures.NO_CAPACITY: ExitCode.NO_CAPACITY, failures.DENIED: ExitCode.DENIED}


def wake_error(name: str, failure: Failure, more: str = "") -> UserError:
    """Return the error to raise for a GPU that did not come up."""

    text = f"{name} did not come up ({failure.code}): {one_line(failure.message)}{more}"
    return UserError(text, exit_code=_BY_CODE.get(failure.code, ExitCode.FAILED))
