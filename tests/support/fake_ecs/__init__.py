"""A fake of Alibaba Cloud's ECS API over HTTP: `cloud` is what happens, `server` how it is asked."""

from tests.support.fake_ecs.cloud import ApiError, Cloud, FakeInstance
from tests.support.fake_ecs.server import FakeEcs, Fault, Key

__all__ = ["ApiError", "Cloud", "FakeEcs", "FakeInstance", "Fault", "Key"]
