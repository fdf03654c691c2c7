"""`qwenctl doctor`: why the first wake would fail, before it does.

Small checks, each of one thing; none changes anything. Those of a cloud are in its folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from qwenctl.admin.deployment_checks import Deployment, gpu_checks, node_checks, other_checks
from qwenctl.clouds.registry import part
from qwenctl.config.deployment import Config
from qwenctl.config.gpu import GpuConfig
from qwenctl.config.providers import context_of
from qwenctl.errors import ConfigError
from qwenctl.lib.findings import Check, Finding, Level, run_checks

__all__ = ["Finding", "Level", "examine"]


def examine(config: Config, gpus: Iterable[str]) -> Iterator[Finding]:
    """Every finding, as it is found: the deployment's, then each GPU's."""
    names = list(gpus)
    deployment = Deployment(config, names)
    yield from run_checks(deployment.checks())
    for name in names:
        for finding in run_checks(gpu_checks(deployment, name)):
            yield replace(finding, gpu=name)
        candidates = config.gpu[name].candidates()
        for own, gpu in candidates:
            for finding in run_checks(_cloud_checks(deployment, name, gpu)):
                yield replace(finding, gpu=f"{name}: {own}" if len(candidates) > 1 else name)


def _cloud_checks(deployment: Deployment, name: str, gpu: GpuConfig) -> list[Check]:
    try:
        checks_of = part(gpu.provider, "checks")
    except ConfigError:
        checks_of = None
    if checks_of is None:
        return other_checks(deployment, name, gpu)
    checks, observation = checks_of(gpu.settings, context_of(name, gpu, deployment.config))
    return [*checks, lambda: node_checks(deployment, name, observation())]
