"""Name what a start failed for want of, if that may yet come: at boot a driver is often late.

The texts are those of Docker, nvidia-container-toolkit (libnvidia-container, CDI), NVML and PyTorch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
"""Is there once the kernel has the driver."""


@dataclass(frozen=True)
class Lack:
    """Something that the machine lacks."""

    pattern: re.Pattern[str]
    name: str
    advice: str
    comes: bool = True
    """Whether it may come without a person."""
    longest: float = math.inf
    """Seconds after which it will not, even within a boot."""
    optional: bool = False
    """Whether it is not waited for where `max_restarts` is 0: it often never comes."""


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


LACKS = (
    Lack(
        _words("driver/library version mismatch"),
        "a driver that fits its libraries",
        "the NVIDIA driver was upgraded while it was in use: stop and start the instance",
        comes=False,
    ),
    Lack(
        _words(r"device error: \S+: unknown device"),
        "that GPU",
        "correct `gpus` in the proxy's configuration; `nvidia-smi -L` on the node lists them",
        comes=False,
    ),
    Lack(
        _words("unresolvable CDI device", "CDI device injection failed", "no CDI devices? found"),
        "the CDI description of the GPUs",
        "run `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` on the node",
    ),
    Lack(
        _words(
            "driver[ _]not[ _]loaded",
            "failed to initialize nvml",
            "nvml error",
            "nvidia-container-cli: (initialization|detection) error",
            r"libnvidia-ml\.so",
            r"/dev/nvidia\S*.{0,40}no such file",
            r"no such file.{0,40}/dev/nvidia",
            "found no nvidia driver",
            "couldn't communicate with the nvidia driver",
        ),
        "the NVIDIA driver",
        "if it does not come, `nvidia-smi` and `dmesg` on the node say why; is it installed?",
    ),
    Lack(
        _words("could not select device driver", "unknown or invalid runtime name: nvidia"),
        "nvidia-container-toolkit",
        "install nvidia-container-toolkit, run `nvidia-ctk runtime configure --runtime=docker` and "
        "restart Docker",
        longest=300.0,
        optional=True,
    ),
    Lack(
        _words(
            r"cannot be pulled: .*(no such host|server misbehaving|network is unreachable"
            r"|no route to host|temporary failure in name resolution)"
        ),
        "the network and its name service",
        "",
        longest=300.0,
        optional=True,
    ),
    Lack(
        _words(r"^Docker does not answer: (?!.*permission denied)"),
        "Docker",
        "",
        optional=True,
    ),
)

OF_OUTPUT = LACKS[3]
"""What the output of a service that has crashed may name, too."""


def lack_of(problem: str) -> Lack | None:
    """Return what a service could not be started for want of; None: something else."""
    return next((lack for lack in LACKS if lack.pattern.search(problem)), None)


def lack_in_output(output: str) -> Lack | None:
    """Return what a crashed service's last lines miss, where the machine lacks it indeed."""
    return OF_OUTPUT if OF_OUTPUT.pattern.search(output) and not DRIVER.exists() else None
