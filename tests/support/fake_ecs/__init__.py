"""A fake of Alibaba Cloud's ECS and RAM APIs over HTTP: `cloud` and `ram` are what happens, `server`
is how it is asked."""

from tests.support.fake_ecs.cloud import Cloud, FakeInstance
from tests.support.fake_ecs.errors import ApiError
from tests.support.fake_ecs.server import FakeEcs, Fault, Key

__all__ = ["ApiError", "Cloud", "FakeEcs", "FakeInstance", "Fault", "Key"]
