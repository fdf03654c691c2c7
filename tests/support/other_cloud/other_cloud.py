"""A third party's provider for tests, with settings, checks and a part for administrators.

Its instances start whenever they are told to, but for those whose id ends in ``-full``. Installed
by putting this directory on the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import ClassVar

from pydantic import Field

from qwenctl.clouds.admin import Found, Importer, ImportOption
from qwenctl.clouds.base import Accepted, Context, NoCapacity, Observation, ProviderSettings
from qwenctl.clouds.permissions import Document, Instance, document
from qwenctl.core.phase import Observed
from qwenctl.lib.findings import Check, Finding, ok


class Settings(ProviderSettings):
    sample: ClassVar[str] = """\
[gpu.{name}.other]
region = ""
instance_id = ""  # such as "m-1"
"""
    instance_id: str = Field("", pattern=r"^(m-[a-z0-9-]+)?$")
    region: str = ""
    rack: int = Field(1, ge=1, le=40)


class OtherCloud:
    call_timeout = observe_interval = 1.0

    def __init__(self, settings: Settings, context: Context) -> None:
        self.settings, self.context = settings, context
        self.state = Observed.STOPPED

    def describe(self) -> Observation:
        return Observation(self.state, self.settings.instance_id)

    def start(self) -> Accepted:
        if self.settings.instance_id.endswith("-full"):
            raise NoCapacity("the rack is full")
        self.state = Observed.RUNNING
        return Accepted(f"rack {self.settings.rack}")

    def stop(self) -> Accepted:
        self.state = Observed.STOPPED
        return Accepted()


make = OtherCloud


def checks(settings: Settings, context: Context) -> tuple[list[Check], Callable[[], Observation]]:
    def rack() -> Iterable[Finding]:
        yield ok("rack", f"{context.gpu} is in rack {settings.rack}")

    return [rack], OtherCloud(settings, context).describe


def _policy(instances: Sequence[Instance]) -> Document:
    return document("other", {"Machines": [instance.instance_id for instance in instances]})


def _read(settings: Settings) -> Found:
    if settings.instance_id.endswith("-full"):
        raise NoCapacity("the rack is full")
    own = {"region": settings.region, "instance_id": settings.instance_id, "rack": settings.rack}
    return Found("other", "big", "rented", {"private": "10.0.0.9"}, own, price=0.5)


admin = SimpleNamespace(
    proxy_policy=_policy,
    node_policy=_policy,
    IDLE_ALARM="a bell",
    REQUIRED_KEYS=(),
    IMPORTER=Importer(
        cloud="the other cloud",
        help="Read a machine of the other cloud.",
        region="cellar",
        instance_id="m-1",
        read=_read,
        options=(ImportOption("rack", "NUMBER", "Where it stands.", form="a rack is 1 to 40"),),
    ),
)
