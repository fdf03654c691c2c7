"""Make a GPU's provider from the configuration."""

from __future__ import annotations

from pathlib import Path

from qwenctl.clouds.base import Context, Provider
from qwenctl.clouds.registry import part
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.errors import ConfigError


def make_provider(name: str, gpu: GpuConfig, config: Config) -> Provider:
    """Make a GPU's provider; with fallbacks, one provider for all its instances.

    Raises:
        ConfigError: no such provider is installed, or it cannot work with this configuration.
    """
    if gpu.fallback:
        from qwenctl.clouds.fallback import Fallback  # only who uses it pays for its threads

        return Fallback([(own, make_provider(name, one, config)) for own, one in gpu.candidates()])
    try:
        make = part(gpu.provider, "make")
    except ConfigError as error:
        raise ConfigError(f"gpu.{name}.provider = {gpu.provider!r}: {error}") from None
    if make is None:
        raise ConfigError(
            f"gpu.{name}.provider = {gpu.provider!r}: it has no make(settings, context); "
            "see CONTRIBUTING.md"
        )
    provider: Provider = make(gpu.settings, context_of(name, gpu, config))
    return provider


def context_of(name: str, gpu: GpuConfig, config: Config) -> Context:
    """Return the context of a GPU for its provider."""
    file = Path(config.node_secret_file).expanduser() if config.node_secret_file else None
    inline = config.node_secret.get_secret_value()
    return Context(
        gpu=name,
        deployment=config.deployment,
        state_path=config.state_path,
        node_urls=tuple(config.node_urls),
        read_secret=config.read_node_secret,
        secret_file=None if inline else (file or config.state_path / "node.secret").absolute(),
        address=gpu.address,
        agent=gpu.agent,
        spec=gpu.spec,
        program=tuple(gpu.service[0].command) if gpu.service else (),
        dead_man=gpu.timing.dead_man,
    )
