"""Sign messages between node and proxy, and check signatures."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

MAX_SKEW_SECONDS = 120.0
"""How far the node's clock may be from the store's; nonces are kept for twice as long."""

TIME_HEADER = "X-Qwenctl-Time"
NONCE_HEADER = "X-Qwenctl-Nonce"
SIGNATURE_HEADER = "X-Qwenctl-Signature"


class BadSignature(Exception):
    """The signature is not by this deployment's node secret, or not of this message."""


class Stale(Exception):
    """The message's time is too far from ours; ``skew`` is theirs minus ours in s."""

    def __init__(self, skew: float) -> None:
        direction = "ahead of" if skew > 0 else "behind"
        super().__init__(
            f"the node's clock is {abs(skew):.0f} s {direction} the proxy's "
            f"(allowed: {MAX_SKEW_SECONDS:.0f} s); set it with NTP (timedatectl set-ntp true)"
        )
        self.skew = skew


def _mac(secret: str, *parts: bytes) -> str:
    mac = hmac.new(secret.encode(), digestmod=hashlib.sha256)
    for part in parts:
        # Length-prefixed, so that different lists of parts never give the same bytes.
        mac.update(len(part).to_bytes(8, "big") + part)
    return "v1=" + mac.hexdigest()


def sign_message(
    secret: str, method: str, path: str, body: bytes, *, now: float, nonce: str | None = None
) -> dict[str, str]:
    """Return the headers that sign a message; ``now`` is the signer's Unix time."""
    nonce = nonce or secrets.token_hex(16)
    stamp = f"{now:.3f}"
    mac = _mac(
        secret, b"message", method.encode(), path.encode(), stamp.encode(), nonce.encode(), body
    )
    return {TIME_HEADER: stamp, NONCE_HEADER: nonce, SIGNATURE_HEADER: mac}


def check_message(
    secret: str, method: str, path: str, body: bytes, headers: Mapping[str, str], *, now: float
) -> str:
    """Check a message and return its nonce, for the caller to refuse a second time.

    Raises:
        BadSignature: a header is missing or malformed, or the signature is wrong.
        Stale: signed correctly, but more than `MAX_SKEW_SECONDS` from ``now``.
    """
    stamp, nonce = headers.get(TIME_HEADER, ""), headers.get(NONCE_HEADER, "")
    given = headers.get(SIGNATURE_HEADER, "")
    expected = _mac(
        secret, b"message", method.encode(), path.encode(), stamp.encode(), nonce.encode(), body
    )
    if not 16 <= len(nonce) <= 64 or not hmac.compare_digest(given.encode(), expected.encode()):
        raise BadSignature("signed with another node secret, or changed on the way")
    try:
        skew = float(stamp) - now
    except ValueError:
        raise BadSignature("the time header is no number") from None
    if not abs(skew) <= MAX_SKEW_SECONDS:
        raise Stale(skew)
    return nonce


def sign_answer(secret: str, nonce: str, status: int, body: bytes) -> dict[str, str]:
    """Return the header that signs an answer to the message with that nonce."""
    return {SIGNATURE_HEADER: _mac(secret, b"answer", nonce.encode(), str(status).encode(), body)}


def check_answer(
    secret: str, nonce: str, status: int, body: bytes, headers: Mapping[str, str]
) -> None:
    """Raise `BadSignature` unless the proxy that answered knows the node secret."""
    expected = sign_answer(secret, nonce, status, body)[SIGNATURE_HEADER]
    if not hmac.compare_digest(headers.get(SIGNATURE_HEADER, "").encode(), expected.encode()):
        raise BadSignature("the answer was not signed with this deployment's node secret")
