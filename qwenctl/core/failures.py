"""Failure codes, their meanings, and the record of a failure.

The codes are stored, shown and read by scripts; a code never changes. Pages translate them
(``failure.CODE`` and ``advice.CODE`` in ``proxy/locales``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

# Answers of the cloud; see `qwenctl.clouds.base.ProviderError`
CLAIMED: Final = "claimed"
CONFLICT: Final = "conflict"
DENIED: Final = "denied"
NOT_FOUND: Final = "not_found"
NO_CAPACITY: Final = "no_capacity"
PROVIDER_ERROR: Final = "provider_error"
THROTTLED: Final = "throttled"
TRANSIENT: Final = "transient"

# The instance
INSTANCE_LOST: Final = "instance_lost"
SPOT_INTERRUPTION: Final = "spot_interruption"
START_FAILED: Final = "start_failed"
START_TIMEOUT: Final = "start_timeout"

# Its agent and service
AGENT_LOST: Final = "agent_lost"
AGENT_SILENT: Final = "agent_silent"
LOAD_TIMEOUT: Final = "load_timeout"
SERVICE_FAILED: Final = "service_failed"
SERVICE_LOST: Final = "service_lost"

MEANINGS = {
    AGENT_LOST: "its agent is no longer heard of",
    AGENT_SILENT: "its agent has not called",
    CLAIMED: "the instance belongs to another deployment",
    CONFLICT: "the instance is in another state than the call needs",
    DENIED: "the cloud does not permit it",
    INSTANCE_LOST: "the instance stopped while it was needed",
    LOAD_TIMEOUT: "its service was not ready in time",
    NOT_FOUND: "the cloud knows no such instance",
    NO_CAPACITY: "the cloud has no such machine free",
    PROVIDER_ERROR: "the cloud refused",
    SERVICE_FAILED: "its service cannot run",
    SERVICE_LOST: "its service no longer answers",
    SPOT_INTERRUPTION: "the cloud takes the instance back (spot interruption)",
    START_FAILED: "the instance did not start",
    START_TIMEOUT: "the instance did not start in time",
    THROTTLED: "the cloud takes no more calls for now",
    TRANSIENT: "the cloud did not answer properly",
}
"""Every code in plain words."""

NEEDS_PERSON = frozenset({CLAIMED, DENIED, NOT_FOUND})
"""Failures that last until a person acts."""

REPORTED_BY_AGENT = frozenset({AGENT_LOST, AGENT_SILENT, LOAD_TIMEOUT, SERVICE_FAILED})
"""Failures that also occur when no proxy runs that the agent could report to."""


@dataclass(frozen=True)
class Failure:
    """Why the last attempt failed; kept until the GPU is off, or ready and stable."""

    code: str
    message: str
    attempts: int
    retry_at: float
    instance_is_bad: bool
    """Whether the instance must be stopped before the next attempt. False after a failed start:
    an instance found running is then the instance of that start."""

    @property
    def is_interruption(self) -> bool:
        return self.code == SPOT_INTERRUPTION

    @property
    def headline(self) -> str:
        """The message's first line, for visitors; the rest may be the service's log."""
        return (self.message.splitlines() or [""])[0][:300]

    def encode(self) -> str:
        """Return the failure as it is stored; ``transition.lua`` reads ``condemns``."""
        renamed = {"instance_is_bad": "condemns"}
        return json.dumps({renamed.get(name, name): value for name, value in vars(self).items()})

    @classmethod
    def decode(cls, text: str) -> Failure:
        """Read a stored failure.

        Raises:
            ValueError: the text is no stored failure.
        """
        try:
            fields = json.loads(text)
            return cls(
                str(fields["code"]),
                str(fields["message"]),
                int(fields["attempts"]),
                float(fields["retry_at"]),
                bool(fields["condemns"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no failure: {error!r}") from None
