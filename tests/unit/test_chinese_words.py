"""Chinese texts name the proxy and the agent alike: 代理 and 节点程序."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "proxy/locales/zh.json",
    ROOT / "qwenctl/locales/zh.json",
]
OTHER_NAMES = re.compile(r"节点代理|代理程序|\b(proxy|agent)\b", re.IGNORECASE)
CODE = re.compile(
    r"`[^`]*`|\([^)]*\)|（`[^）]*）|^\s*\"[^\"]*\":|[\w.]*\.[\w.]+|\w+ = \w+|\{\w+\}|\[[\w,]+\]"
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_word_for_each(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    chinese = [CODE.sub("", line) for line in lines if re.search(r"[\u4e00-\u9fff]", line)]
    assert [line for line in chinese if OTHER_NAMES.search(line)] == []
