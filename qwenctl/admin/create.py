"""Create and release the instance of a template, in any cloud."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from qwenctl.clouds.admin import TOKEN_MISMATCH, Existing, InstanceCreator
from qwenctl.clouds.base import Conflict, NotFound, ProviderError, Transient
from qwenctl.core.phase import Observed
from qwenctl.errors import UserError


def missing_keys(template: Any, required: Sequence[str]) -> list[str]:
    """Return the required keys that the template does not set."""
    return [key for key in required if not getattr(template, key)]


APPEAR_SECONDS = 60.0
"""How long the cloud may not show an instance that it accepted, in seconds."""


def create(creator: InstanceCreator, *, patience: float = APPEAR_SECONDS) -> tuple[Existing, bool]:
    """Create the instance, and return it and whether it existed before.

    Args:
        creator: the cloud.
        patience: seconds to wait until the cloud shows the instance.

    Raises:
        UserError: there are several, or the new instance is gone again.
        ProviderError: the cloud refuses, or has not answered; then it may have accepted.
    """
    if found := the_one(creator):
        return found, True
    try:
        instance_id = creator.run()
    except ProviderError as error:
        if error.cloud_code == TOKEN_MISMATCH:
            return _earlier(creator, patience), True
        if isinstance(error, Conflict):
            raise Transient(
                "the cloud is still at an earlier create; run the same command again in a minute",
                cloud_code=error.cloud_code,
                request_id=error.request_id,
            ) from None
        raise
    deadline = time.monotonic() + patience
    while not (seen := creator.look(instance_id)):
        if time.monotonic() >= deadline:
            raise UserError(f"{instance_id} was accepted and cannot be seen; {_anew(creator)}")
        time.sleep(1.0)
    if seen.state is Observed.ABSENT:
        why = f": {seen.reason}" if seen.reason else ""
        raise UserError(f"{instance_id} was created and is gone again{why}; {_anew(creator)}")
    return seen, False


def the_one(creator: InstanceCreator) -> Existing | None:
    """Return the instance that carries our tags, if it exists.

    Raises:
        UserError: there are several.
    """
    found = creator.find()
    if len(found) > 1:
        ids = ", ".join(one.id for one in found)
        raise UserError(
            f"several instances carry the tags of gpu.{creator.request.gpu}: {ids}; put the id of the "
            "right one into the configuration as instance_id, and release the others in the console"
        )
    return found[0] if found else None


def _earlier(creator: InstanceCreator, patience: float) -> Existing:
    """Return the instance of an earlier call with other settings."""
    deadline = time.monotonic() + patience
    while not (found := the_one(creator)):
        if time.monotonic() >= deadline:
            raise UserError(
                "an earlier create had other settings, and there is no instance of it; "
                + _anew(creator)
            )
        time.sleep(1.0)
    return found


def _anew(creator: InstanceCreator) -> str:
    return (
        "look in the console whether it is still there. If it is not, set generation = "
        f"{creator.request.generation + 1} in the template and run the command again"
    )


def release(creator: InstanceCreator, instance_id: str, *, force: bool = False) -> Existing | None:
    """Delete the instance and return it; None if it was gone already.

    Raises:
        UserError: it does not carry our tags, or it is not stopped and ``force`` is not set.
        ProviderError: the cloud refuses, or has not answered; then it may have accepted.
    """
    existing = may_release(creator, instance_id, force=force)
    if existing is not None:
        try:
            creator.delete(existing, force=force)
        except NotFound:
            return None
    return existing


def may_release(
    creator: InstanceCreator, instance_id: str, *, force: bool = False
) -> Existing | None:
    """Return the instance, if it may be released; None if it is gone.

    Raises:
        UserError: as `release`.
    """
    existing = creator.look(instance_id)
    if existing is None or existing.state is Observed.ABSENT:
        return None
    wanted = creator.request.tags
    if any(existing.tags.get(key) != value for key, value in wanted.items()):
        tags = ", ".join(f"{key}={value}" for key, value in wanted.items())
        raise UserError(
            f"{instance_id} does not carry the tags {tags}, so `qwenctl provision create` did not "
            "make it; release it in the console"
        )
    if existing.state is not Observed.STOPPED and not force:
        raise UserError(
            f"{instance_id} is {existing.state.value}; stop it first (`qwenctl down`), or use "
            "--force"
        )
    return existing
