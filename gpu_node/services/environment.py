"""The variables that a service is given: those of its spec, over those of a file on the node."""

from __future__ import annotations

from pathlib import Path

from gpu_node.services.runtime import StartFailed
from qwenctl.protocol.messages import Service

__all__ = ["service_environment"]


def service_environment(service: Service) -> dict[str, str]:
    """What the spec and the file that it names set.

    The file has one ``KEY=value`` a line, as ``docker run --env-file`` has it: blank lines and lines
    that begin with ``#`` do not count, and quotes are part of the value.

    Raises:
        StartFailed: the file cannot be read, or a line of it is none of these.
    """
    found: dict[str, str] = {}
    if service.env_file:
        try:
            lines = Path(service.env_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise StartFailed(f"env_file: cannot read {service.env_file}: {reason}") from None
        for number, line in enumerate(lines, 1):
            name, equals, value = line.strip().partition("=")
            if not name or name.startswith("#"):
                continue
            if not equals or not name.replace("_", "a").isalnum():
                # The line itself is not shown: it may be a secret.
                raise StartFailed(f"env_file: {service.env_file}:{number} is not KEY=value")
            found[name] = value
    return {**found, **service.env}
