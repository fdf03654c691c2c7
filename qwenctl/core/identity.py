"""A visitor's identity and capabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qwenctl.core.leases import request

KEY_PREFIX: Final = "qk_"
"""Every API key begins with it, so that it is never forwarded to the GPU."""

USE: Final = "use"
"""Requests are forwarded to the GPU and keep it on."""
WAKE: Final = "wake"
"""Requests and waiting pages wake the GPU as far as its `wake_on` permits."""
WAKE_ALWAYS: Final = "wake-always"
"""Wakes the GPU whatever `wake_on` says."""


@dataclass(frozen=True)
class Identity:
    """A visitor who has been identified, and may therefore read the status.

    Each is named by the most specific of ``key_id``, ``member``, ``session`` and ``address``.
    """

    tenant: str = ""
    """Empty: the implicit tenant of a deployment without tenants."""
    member: str = ""
    key_id: str = ""
    scopes: frozenset[str] = frozenset({USE, WAKE})
    session: str = ""
    address: str = ""

    @property
    def name(self) -> str:
        """The name that `status` and `why` show."""
        return self.key_id or self.member or self.session or self.address

    @property
    def lease(self) -> str:
        """The name of this client's demand lease."""
        kinds = (("key:", self.key_id), ("member:", self.member), ("browser:", self.session))
        client = next((kind + name for kind, name in kinds if name), self.address)
        return request(f"{self.tenant}/{client}" if self.tenant else client)

    @property
    def may_use(self) -> bool:
        return USE in self.scopes

    @property
    def may_wake(self) -> bool:
        return WAKE in self.scopes or self.wakes_always

    @property
    def wakes_always(self) -> bool:
        return WAKE_ALWAYS in self.scopes

    @property
    def may_sign_out(self) -> bool:
        return bool(self.session)

    @property
    def shares_address(self) -> bool:
        """Whether only the visitor's address is known, which others may have, too."""
        return self.name == self.address

    @property
    def is_one_person(self) -> bool:
        return bool(self.member or self.session) and not self.key_id

    @property
    def needs_same_origin(self) -> bool:
        """Whether another site could make the visitor's browser send the credential (CSRF)."""
        return not self.key_id
