"""Tell this node's containers from those of others, which may carry the same labels.

A container inherits the labels of its image, so that a label proves nothing. A proof does: an HMAC
(RFC 2104) over name and options that only this node can make, given when the container was made.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from qwenctl.lib.private_file import read_private, write_private

log = logging.getLogger(__name__)

T = TypeVar("T")

GPU_LABEL, SERVICE_LABEL, HASH_LABEL = "qwenctl.gpu", "qwenctl.service", "qwenctl.config-hash"
PROOF_LABEL = "qwenctl.proof"

LOG_OPTIONS = {"max-size": "10m", "max-file": "3"}
"""Bounds what a container's log takes on the disk."""


class Ownership:
    """Makes and checks the labels of one GPU's containers.

    Args:
        gpu: this GPU's name, part of each container's.
        key: makes the proofs; empty: a random key, which knows no earlier container.
    """

    def __init__(self, gpu: str, key: bytes = b"") -> None:
        self._gpu = gpu
        self._key = key or secrets.token_bytes(32)

    def name(self, service: str) -> str:
        return f"qwenctl-{self._gpu}-{service}"

    def labels(self, service: str, digest: str) -> dict[str, str]:
        """Return the labels of a new container."""
        return {
            GPU_LABEL: self._gpu,
            SERVICE_LABEL: service,
            HASH_LABEL: digest,
            PROOF_LABEL: self._proof(secrets.token_hex(8), service, digest),
        }

    def owns(self, client: Any, found: Mapping[str, Any], digest: str = "") -> bool:
        """Whether an agent of this node has made the container.

        Args:
            found: the container, as Docker describes it.
            digest: of the options that it should have, if they are known. A container of an earlier
                version, which has no proof, counts by these, or by the other marks of such a
                container. None of them comes from an image.
        """
        own = own_labels(client, found)
        # A proof is worth as much where the image is gone, as after `docker rmi --force`.
        labels = _labels(found) if own is None else own
        service, made = labels.get(SERVICE_LABEL), labels.get(HASH_LABEL)
        if not service or not made or labels.get(GPU_LABEL) != self._gpu:
            return False
        if found["Name"].lstrip("/") != self.name(service):
            return False
        if PROOF_LABEL in _labels(found):
            proof = labels.get(PROOF_LABEL, "")
            expected = self._proof(proof.partition(":")[0], service, made)
            return hmac.compare_digest(proof.encode(), expected.encode())
        logs = found.get("HostConfig", {}).get("LogConfig") or {}
        return own is not None and (made == digest or logs.get("Config") == LOG_OPTIONS)

    def _proof(self, nonce: str, service: str, digest: str) -> str:
        """Return the label's value; with a nonce, so that it never equals an image's."""
        words = "\0".join((nonce, self._gpu, service, digest))
        return f"{nonce}:{hmac.new(self._key, words.encode(), hashlib.sha256).hexdigest()}"


def own_labels(client: Any, found: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the labels that a container was given itself; None: its image is gone, so unknown."""
    image = unless_missing(client.inspect_image, found["Image"])
    if image is None:
        return None
    inherited = _labels(image)
    return {key: value for key, value in _labels(found).items() if inherited.get(key) != value}


def _labels(found: Mapping[str, Any]) -> Mapping[str, str]:
    return (found.get("Config") or {}).get("Labels") or {}


def container_key(file: Path, secret: str) -> bytes:
    """Return the key that proves containers, made of the node secret when there is none yet.

    It stays when the secret is replaced: otherwise the containers that run would be somebody
    else's.
    """
    try:
        if kept := read_private(file).strip():
            return kept
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("cannot read %s: %s", file, error.strerror)
    made = hmac.new(secret.encode(), b"qwenctl containers", hashlib.sha256).hexdigest()
    try:
        write_private(file, made)
    except OSError as error:  # a full disk must not end the node
        log.warning("cannot write %s: %s", file, error.strerror)
    return made.encode()


def unless_missing(inspect: Callable[[str], T], name: str) -> T | None:
    """Return what Docker knows of a container or an image; None if there is none of that name."""
    from docker.errors import NotFound

    try:
        return inspect(name)
    except NotFound:
        return None
