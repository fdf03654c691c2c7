from __future__ import annotations

from qwenctl.lib.findings import fail, ok, warn


def test_a_finding_shows_no_login() -> None:
    text = "no proxy answers at http://me:hush@a:1"
    for finding in (ok("url", text), warn("url", text), fail("url", text, "Start it.")):
        assert finding.found == "no proxy answers at http://***@a:1"
