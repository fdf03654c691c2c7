"""Explain Docker's errors in a sentence, and find those that no retry can mend."""

from __future__ import annotations

from gpu_node.services.awaited import lack_of
from qwenctl.lib.redaction import redacted
from qwenctl.protocol.messages import Service

_NO_SPACE = "no space left on device"

NO_COMMAND = "exec: "
"""In Docker's message where the image does not have the container's command."""


def is_hopeless(name: str, problem: str) -> str:
    """Return the sentence for a pull that no further attempt helps, or nothing."""
    text = problem.lower()
    if _NO_SPACE in text:
        return f"no room on the disk for the image {name}: make the disk larger or remove images"
    if "manifest unknown" in text or "not found" in text or "repository does not exist" in text:
        return f"the registry has no image {name} (or asks for a login: `docker login`): {problem}"
    if "unauthorized" in text or "denied" in text or "no basic auth" in text:
        return (
            f"the registry refuses the image {name}: {problem}; sign in on the node with `docker "
            "login`, or set registry_auth_file in the agent's settings"
        )
    if "invalid reference" in text:
        return f"{name} is no name of an image"
    return ""


def start_error_text(error: Exception, service: Service) -> str:
    text = error_text(error)
    if lack := lack_of(text):
        return f"Docker cannot give it a GPU for want of {lack.name}: {text}; {lack.advice}"
    if "nvidia" in text.lower():
        return f"Docker cannot give it a GPU: {text}"
    if "port is already allocated" in text or "address already in use" in text:
        return f"port {service.port} of the node is in use by another program: {text}"
    return text


def error_text(error: BaseException) -> str:
    """Return the error in one line, without secrets."""
    explanation = getattr(error, "explanation", None)
    if isinstance(explanation, bytes):
        explanation = explanation.decode("utf-8", "replace")
    text = explanation or system_error_text(error) or str(error) or type(error).__name__
    return redacted(" ".join(str(text).split()))[:500]


def system_error_text(error: BaseException, depth: int = 10) -> str:
    """Return the operating system's text for the cause of an error, if it is the cause.

    The HTTP libraries wrap it several times over, some only in their arguments.
    """
    if depth == 0:
        return ""
    # `reason` is urllib3's.
    causes = (error.__cause__, error.__context__, *error.args, getattr(error, "reason", None))
    for cause in causes:
        if isinstance(cause, BaseException) and (words := system_error_text(cause, depth - 1)):
            return words
    return (error.strerror or "") if isinstance(error, OSError) else ""
