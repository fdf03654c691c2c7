"""Errors that a person can act on, each with an exit code.

The codes are part of the interface: scripts test them. `docs/reference/cli.md` lists them.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    ERROR = 1  # anything that has no code of its own
    USAGE = 2  # bad option, bad config
    NO_CAPACITY = 3  # the cloud has no such machine free
    DENIED = 4  # permission, credentials, wrong password
    TIMEOUT = 5  # it did not happen in the given time
    FAILED = 6  # the instance or its service failed to come up, or the instance to go off
    BLOCKED = 7  # somebody has blocked the GPU
    UNAVAILABLE = 8  # Redis or the proxy cannot be reached
    INTERRUPTED = 130  # Ctrl-C


class UserError(Exception):
    """One clear sentence for the user; printed without a traceback."""

    exit_code: ExitCode = ExitCode.ERROR

    def __init__(self, text: str, exit_code: ExitCode | None = None) -> None:
        super().__init__(text)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(UserError):
    """The configuration or the command line cannot be used as it is."""

    exit_code = ExitCode.USAGE


class StoreUnavailable(UserError):
    """Redis cannot be reached. Every store call raises it, so that nothing is done blind."""

    exit_code = ExitCode.UNAVAILABLE


class StoreAuthError(StoreUnavailable):
    """Redis can be reached and refuses the password."""

    exit_code = ExitCode.DENIED
