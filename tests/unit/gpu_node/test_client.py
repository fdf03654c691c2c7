from __future__ import annotations

import gzip

import pytest
from pytest_httpserver import HTTPServer

from gpu_node.client import NoContact, ProxyClient
from qwenctl.protocol.messages import REPORT_PATH, Hello


def test_a_login_in_a_proxys_url_is_not_shown() -> None:
    client = ProxyClient(["http://me:hush-hush@127.0.0.1:1"], "secret")
    with pytest.raises(NoContact) as raised:
        client.send(REPORT_PATH, Hello(gpu="main", boot_id="boot-1234"))
    client.close()
    assert "http://***@127.0.0.1:1: " in str(raised.value)
    assert "hush" not in str(raised.value)


def test_a_packed_answer_is_not_unpacked(httpserver: HTTPServer) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    httpserver.expect_request(REPORT_PATH).respond_with_data(
        bomb, headers={"Content-Encoding": "gzip"}
    )
    client = ProxyClient([httpserver.url_for("")[:-1]], "secret")
    with pytest.raises(NoContact, match="not signed"):
        client.send(REPORT_PATH, Hello(gpu="main", boot_id="boot-1234"))
    client.close()
