"""Remember by which settings an instance was started, so that it is stopped whatever the file says.

The store keeps this beside the phase, as JSON, from the start until the instance is off. No secret is
in it: credentials come from the environment or a profile, as for any other call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import SecretBytes, SecretStr, ValidationError

from qwenctl.clouds.base import Provider
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.providers import make_provider
from qwenctl.errors import ConfigError
from qwenctl.lib.redaction import is_secret, redacted, secret_options

_KEPT = {"address", "agent", "idle_timeout"}


class Started:
    """The instances that a GPU's settings name: its own and its fallbacks.

    ``Started.of`` makes it from the settings, ``Started.read`` from what the store has.
    """

    def __init__(self, candidates: Sequence[dict[str, Any]]) -> None:
        self._candidates = list(candidates)

    @classmethod
    def of(cls, gpu: GpuConfig, config: Config) -> Started:
        return cls([_candidate(name, one, config) for name, one in gpu.candidates()])

    @classmethod
    def read(cls, text: str) -> Started:
        """Raises:
        ConfigError: a later version has written it.
        """
        try:
            data = json.loads(text)
            return cls([{**_EMPTY, **one} for one in data["candidates"]])
        except (ValueError, TypeError, KeyError):
            raise ConfigError("what the store knows of it cannot be read") from None

    def encode(self) -> str:
        return json.dumps({"v": 1, "candidates": self._candidates}, sort_keys=True)

    @property
    def identities(self) -> frozenset[tuple[str, ...]]:
        """What tells each of the instances from any other."""
        return frozenset(tuple(one["identity"]) for one in self._candidates)

    @property
    def instances(self) -> frozenset[str]:
        """The ids that the settings give to the instances."""
        return frozenset(one["instance"] for one in self._candidates if one["instance"])

    @property
    def name(self) -> str:
        """The own instance, in the name of a block."""
        own = self._candidates[0]
        return str(own["instance"] or own["provider"])

    def without(self, identities: frozenset[tuple[str, ...]]) -> Started | None:
        """Return it without these instances; None: no other is left."""
        left = [one for one in self._candidates if tuple(one["identity"]) not in identities]
        return Started(left) if left else None

    def common(self, other: Started) -> frozenset[str]:
        """Return the ids of the instances that both name by the same way to them."""
        both = self.identities & other.identities
        return frozenset(
            one["instance"]
            for one in self._candidates
            if one["instance"] and tuple(one["identity"]) in both
        )

    @property
    def words(self) -> str:
        """The instances for people: cloud, id and region."""
        return " or ".join(one["words"] for one in self._candidates)

    def gpu(self) -> GpuConfig:
        """Return settings of the GPU by which its own instance can be looked at and stopped.

        Raises:
            ConfigError: see `_gpu`.
        """
        return _gpu(self._candidates[0])

    def provider(self, name: str, config: Config) -> Provider:
        """Make the provider of the instances.

        Raises:
            ConfigError: it is not installed any more, or needs secrets that were in the file.
        """
        made = [
            (str(one["name"]), make_provider(name, _gpu(one), _where(one, config)))
            for one in self._candidates
        ]
        if len(made) == 1:
            return made[0][1]
        from qwenctl.clouds.fallback import Fallback  # only who uses it pays for its threads

        return Fallback(made)


_EMPTY: dict[str, Any] = {
    "name": "",
    "provider": "",
    "settings": {},
    "gpu": {},
    "identity": [],
    "instance": "",
    "words": "",
    "state_path": "",
    "secrets": [],
}


def _candidate(name: str, gpu: GpuConfig, config: Config) -> dict[str, Any]:
    settings = gpu.settings
    kept = settings.model_dump(exclude_defaults=True, exclude={"template"})
    secrets = [key for key in kept if _holds_secret(key, kept[key])]
    kept = {key: value for key, value in kept.items() if key not in secrets}
    own = gpu.model_dump(include=_KEPT, exclude_defaults=True)
    own["timing"] = gpu.timing.model_dump(exclude_defaults=True)
    state_path = str(config.state_path.absolute()) if settings.on_this_machine else ""
    identity = [gpu.provider, *settings.identity]
    region = getattr(settings, "region", "")
    return {
        "name": name,
        "provider": gpu.provider,
        "settings": json.loads(json.dumps(kept, default=str)),
        "gpu": own,
        "identity": [*identity, state_path] if state_path else identity,
        "instance": settings.instance,
        "words": gpu.machine + (f" in {region}" if region else ""),
        "state_path": state_path,
        "secrets": secrets,
    }


def _holds_secret(key: str, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_secret(inner, one) for inner, one in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        words = [one for one in value if isinstance(one, str)]
        return any(secret_options(words)) or any(_holds_secret(key, one) for one in value)
    if isinstance(value, str) and redacted(value) != value:
        return True
    return bool(value) and (isinstance(value, (SecretStr, SecretBytes)) or is_secret(key))


def _gpu(one: dict[str, Any]) -> GpuConfig:
    """Return the settings of one instance.

    Raises:
        ConfigError: its provider is not installed any more, or its settings held secrets.
    """
    if one["secrets"]:
        keys = " and ".join(one["secrets"])
        raise ConfigError(f"its settings held {keys}, which only the config file had")
    try:
        provider = {"provider": one["provider"], one["provider"]: one["settings"]}
        return GpuConfig.model_validate({**one["gpu"], **provider})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"its settings are no longer valid ({where}: {problem['msg']})") from None


def _where(one: dict[str, Any], config: Config) -> Config:
    """Return the configuration with the state directory that the instance lives in."""
    return (
        config.model_copy(update={"state_dir": one["state_path"]}) if one["state_path"] else config
    )


def of_others(config: Config, name: str = "") -> frozenset[tuple[str, ...]]:
    """Return the identities of the instances that other GPUs of the configuration name."""
    found: frozenset[tuple[str, ...]] = frozenset()
    for other, gpu in config.gpu.items():
        if other != name and not gpu.settings.on_this_machine:
            found |= Started.of(gpu, config).identities
    return found
