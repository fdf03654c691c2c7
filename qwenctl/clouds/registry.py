"""Where GPUs live: `base` is the contract, each other module is one cloud, in the same verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenctl.clouds.base import Provider
    from qwenctl.config.deployment import Config
    from qwenctl.config.gpu import GpuConfig

__all__ = ["ENTRY_POINTS", "make_provider"]

ENTRY_POINTS = "qwenctl.providers"
"""The entry point group of other people's providers: callables ``(name, gpu, config)``."""


def make_provider(name: str, gpu: GpuConfig, config: Config) -> Provider:
    """The provider of the GPU called ``name``, as its ``provider`` key says.

    Raises:
        ConfigError: no such provider is installed, or it cannot work with this configuration.
    """
    if gpu.fallback:
        from qwenctl.clouds.fallback import Fallback

        return Fallback([(own, make_provider(name, one, config)) for own, one in gpu.candidates()])
    # Imported here: the command line shows its help without loading any provider, and the local
    # machine's process, which comes through this package too, stays small.
    if gpu.provider == "local":
        from qwenctl.clouds.local.provider import LocalProvider

        return LocalProvider.from_config(name, gpu, config)
    if gpu.provider == "aliyun":
        from qwenctl.clouds.aliyun.provider import AliyunProvider

        return AliyunProvider.from_config(name, gpu, config)
    if gpu.provider == "aws":
        from qwenctl.clouds.aws.provider import AwsProvider

        return AwsProvider.from_config(name, gpu, config)
    return _third_party(name, gpu, config)


def _third_party(name: str, gpu: GpuConfig, config: Config) -> Provider:
    from importlib.metadata import entry_points

    from qwenctl.errors import ConfigError

    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    key = f"gpu.{name}.provider = {gpu.provider!r}"
    if gpu.provider in found:
        try:
            make = found[gpu.provider].load()
        except ImportError as error:
            raise ConfigError(f"{key}: cannot load {found[gpu.provider].value}: {error}") from None
        provider: Provider = make(name, gpu, config)
        return provider
    known = ", ".join(sorted({"aliyun", "aws", "local", *found}))
    raise ConfigError(f"{key}: no such provider is installed; known: {known}")
