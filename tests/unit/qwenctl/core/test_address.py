from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from qwenctl.config.gpu import GpuConfig
from qwenctl.core.address import NodeAddress, check_host
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("10.0.0.7", "http://10.0.0.7:7860"),
        ("node.internal", "http://node.internal:7860"),
        ("::1", "http://[::1]:7860"),
        ("fe80::1", "http://[fe80::1]:7860"),
    ],
)
def test_a_url_has_ipv6_in_brackets(host: str, url: str) -> None:
    address = NodeAddress(host, 7860)
    assert (address.url, address.netloc) == (url, url.removeprefix("http://"))


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("[::1]", "::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("gpu-1.example.org", "gpu-1.example.org"),
        ("gpu_1", "gpu_1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_hosts(given: str, host: str) -> None:
    assert check_host(given) == host
    assert GpuConfig(address=given).address == host


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("10.0.0.7:7861", "port in it; give '10.0.0.7' here, and the port as `port`"),
        ("node:7861", "port in it; give 'node' here"),
        ("[::1]:7861", "port in it; give '[::1]' here"),
        ("http://10.0.0.7", "is a URL; give the host name or address only"),
        ("10.0.0.7/x", "is a URL"),
        ("a..b", "neither a host name nor an address"),
        ("a b", "neither a host name nor an address"),
        ("@evil", "neither a host name nor an address"),
    ],
)
def test_what_is_no_host_is_refused_with_what_to_write(given: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_host(given)
    with pytest.raises(ValidationError, match=re.escape(words)):
        GpuConfig(address=given)


def test_nobody_else_builds_a_nodes_url() -> None:
    built = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("qwenctl", "proxy", "gpu_node")
        for path in (ROOT / package).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"f\"http://\{|\{f'\[\{", line) and path.name != "address.py"
    ]
    # Ours and not the node's: the proxy's own URL, and a service of this machine.
    ours = ("qwenctl/config/deployment.py", "gpu_node/services/runtime.py")
    assert [line for line in built if not line.startswith(ours)] == []
