"""No URL or password of the store is quoted or logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenctl.config.deployment import Config
from qwenctl.config.loading import load_config
from qwenctl.errors import ConfigError, StoreAuthError, StoreUnavailable
from qwenctl.store.connect import connect
from qwenctl.store.store import Store
from tests.support.net import free_port
from tests.support.valkey_server import ValkeyServer

SECRET = "s3cret-of-the-store"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/x@127.0.0.1:6379",
        f"redis://:{SECRET}@127.0.0.1:{SECRET}",
        f"redis://u:{SECRET}#@127.0.0.1:port",
        f"redis+sentinel://:p@127.0.0.1:{SECRET}/mymaster",
        f"redis+sentinel://:p@127.0.0.1:1/mymaster/{SECRET}",
        f"redis+cluster://:{SECRET}@127.0.0.1:{SECRET}",
        f"redis://[:{SECRET}@x",
        f"htt://:{SECRET}@127.0.0.1",
        f"{SECRET}@127.0.0.1:6379",
    ],
)
def test_a_malformed_url_is_not_quoted(url: str, tmp_path: Path) -> None:
    file = tmp_path / "qwenctl.toml"
    file.write_text(f"redis_url = {json.dumps(url)}\n")
    with pytest.raises(ConfigError) as caught:
        connect(load_config(str(file), env={}))
    assert SECRET not in str(caught.value)


def test_no_password_of_the_store_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    port = free_port()
    urls = [
        f"redis://:{SECRET}@127.0.0.1:{port}",
        f"redis://someone:{SECRET}@127.0.0.1:{port}",
        f"redis+cluster://:{SECRET}@127.0.0.1:{port}",
        f"redis+sentinel://:{SECRET}@127.0.0.1:{port}/mymaster",
    ]
    told: list[str] = []

    def try_all() -> None:
        for url in urls:
            try:
                store = Store(connect(Config(redis_url=url)), "test")
                told.append(store.place)
                store.ping()
            except (StoreUnavailable, StoreAuthError, ConfigError) as error:
                told.append(str(error))

    try_all()
    with ValkeyServer(port=port, requirepass="another one"):
        try_all()
    assert len(told) >= 2 * len(urls)
    assert SECRET not in "\n".join(told)
    assert SECRET not in caplog.text
