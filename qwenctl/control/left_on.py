"""Find what was started by settings that the config file no longer has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.started import Started, of_others
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.errors import ConfigError, StoreUnavailable
from qwenctl.lib.findings import Finding, warn
from qwenctl.lib.text import duration
from qwenctl.store import embedded
from qwenctl.store.store import Store, open_store


def removed(config: Config, store: Store) -> dict[str, tuple[Snapshot, Started]]:
    """Return the GPUs that the settings no longer have and whose instance may be on."""
    found = {}
    for name in store.gpus():
        if name in config.gpu:
            continue
        snapshot = store.snapshot(name)
        text = snapshot.state.get("started")
        if text and (former := Started.read(text).without(of_others(config))):
            found[name] = snapshot, former
    return found


def with_removed(config: Config, store: Store) -> Config:
    """Return the configuration with the removed GPUs too, as far as they are known."""
    gpus: dict[str, GpuConfig] = {}
    for name, (_, former) in removed(config, store).items():
        try:
            gpus[name] = former.gpu()
        except ConfigError:
            gpus[name] = GpuConfig()
    return config.model_copy(update={"gpu": {**config.gpu, **gpus}}) if gpus else config


def left_running(config: Config, store: Store) -> Iterator[str]:
    """Yield what stays on when this proxy ends, and nobody else looks after it."""
    for name, gpu in config.gpu.items():
        snapshot = store.snapshot(name)
        if snapshot.leader or not (snapshot.phase.running or snapshot.phase is Phase.STARTING):
            continue
        text = f"{name} is {snapshot.phase.value} and stays on, and costs"
        text += "; nobody stops it"
        if gpu.agent:
            after = duration(gpu.timing.dead_man)
            text += f" until its agent does, after {after} without a proxy and without work"
        which = f" --gpu {name}" if len(config.gpu) > 1 else ""
        yield f"{text}; `qwenctl down{which}` stops it now, `qwenctl serve` looks after it again"


def check_any(config: Config) -> None:
    """Refuse settings without a GPU; name those that settings of before may have left on.

    Raises:
        ConfigError: there is no GPU.
    """
    if config.gpu:
        return
    try:
        config.gpu_name(None)
    except ConfigError as error:
        raise ConfigError("\n".join([str(error), *_left_on(config)])) from None


def _left_on(config: Config) -> Iterator[str]:
    if not (config.redis_url or embedded.has_data(config.state_path)):
        return
    try:
        for finding in findings(config, open_store(config)):
            yield f"{finding.found}: `qwenctl down --gpu {finding.gpu}` stops it"
    except (ConfigError, StoreUnavailable):
        return


def findings(config: Config, store: Store) -> Iterator[Finding]:
    """Yield a finding for each GPU with an instance on that its settings do not name."""
    for name, (_, former) in removed(config, store).items():
        found = f"{former.words}, which was started for it, may be on"
        yield replace(
            warn(
                "former settings",
                f"the settings no longer have gpu.{name}, and {found}",
                f"`qwenctl serve` stops it; `qwenctl down --gpu {name}` does so without a proxy.",
            ),
            gpu=name,
        )
    for name, gpu in config.gpu.items():
        snapshot = store.snapshot(name)
        text = snapshot.state.get("started")
        if not text or snapshot.phase is Phase.OFF:
            continue
        former, own = Started.read(text), Started.of(gpu, config)
        if not former.identities <= own.identities:
            found = f"{former.words}, which was started before, may be on"
            yield replace(
                warn(
                    "former settings",
                    f"gpu.{name} is {own.words} now, and {found}",
                    "`qwenctl serve` reads the settings when it starts, and stops it before it starts "
                    "the other.",
                ),
                gpu=name,
            )
