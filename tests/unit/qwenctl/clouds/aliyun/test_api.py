"""The ECS API's credentials, when they cannot be had just now."""

from __future__ import annotations

import errno
import os

import pytest
import requests

from qwenctl.clouds.aliyun.api import Ecs
from qwenctl.clouds.aliyun.settings import AliyunConfig
from qwenctl.clouds.base import Denied, ProviderError, Transient


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (requests.ConnectionError("metadata"), Transient),
        (TimeoutError(), Transient),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), Transient),
        (ValueError(f"from any source: [{os.strerror(errno.EMFILE)}]"), Transient),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), Denied),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), Denied),
        (ValueError("there are none"), Denied),
    ],
)
def test_credentials_that_cannot_be_read_now_need_no_person(
    fault: Exception, kind: type[ProviderError]
) -> None:
    class Source:
        def get_credentials(self) -> None:
            raise fault

    with pytest.raises(kind) as refused:
        Ecs(AliyunConfig(region="cn-hangzhou"), Source())._keys()
    assert type(refused.value) is kind
