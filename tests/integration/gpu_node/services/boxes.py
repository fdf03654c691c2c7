"""What the tests of the Docker runtime share."""

from __future__ import annotations

from typing import Any

from qwenctl.protocol.messages import Container, Service
from tests.support.docker_engine import IMAGE
from tests.support.net import free_port
from tests.support.stand_in_proxy import StandInProxy

__all__ = ["containerised", "ready"]


def containerised(*arguments: str, **more: Any) -> Service:
    """The tests' service program in a container."""
    port = more.pop("port", None) or free_port()
    box = {"image": IMAGE, "gpus": (), "port": 8000, "bind": "127.0.0.1", "pull": "never"}
    box |= {key: more.pop(key) for key in list(more) if key in Container.model_fields}
    return Service(
        **{
            "runtime": "docker",
            "container": Container(**box),
            "command": ("8000", "--host", "0.0.0.0", *arguments),
            "port": port,
            "stop_timeout": 3.0,
            **more,
        }
    )


def ready(proxy: StandInProxy) -> Any:
    return proxy.wait_report(lambda r: r.state == "ready", timeout=60)
