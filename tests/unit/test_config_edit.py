"""Keys of a config file are set and removed, and nothing else changes."""

from __future__ import annotations

import pytest

from qwenctl.cli.config_edit import with_keys
from qwenctl.errors import ConfigError

PLACE = ("gpu", "main", "aws")
TEXT = """\
# mine
[gpu.main]
provider = "aws"   # why not

[gpu.other.aws]
instance_id = "i-0"

[gpu.main.aws]  # the cloud
region = "us-east-1"
# instance_id = "i-1"
instance_id = "i-2"  # by hand

[gpu.main.aws.template]
instance_id_of_old = 3
"""


def test_a_value_is_replaced_and_its_comment_kept() -> None:
    after = with_keys(TEXT, PLACE, {"instance_id": "i-3"})
    assert after == TEXT.replace('"i-2"', '"i-3"')


def test_a_key_is_removed() -> None:
    after = with_keys(TEXT, PLACE, {"instance_id": None})
    assert after == TEXT.replace('instance_id = "i-2"  # by hand\n', "")
    assert with_keys(after, PLACE, {"instance_id": None}) == after


def test_a_new_key_goes_below_the_header() -> None:
    place = (*PLACE, "template")
    after = with_keys(TEXT, place, {"generation": 2})
    assert after == TEXT.replace("template]\n", "template]\ngeneration = 2\n")
    assert with_keys(after, place, {"generation": 3}) == after.replace("= 2", "= 3")


def test_line_ends_stay() -> None:
    text = TEXT.replace("\n", "\r\n")
    assert with_keys(text, PLACE, {"instance_id": "i-3"}) == text.replace('"i-2"', '"i-3"')
    added = with_keys(text, PLACE, {"address": "auto"})
    assert added.count("\r\n") == added.count("\n") == text.count("\n") + 1
    assert with_keys("[a.b]", ("a", "b"), {"c": True}) == "[a.b]\nc = true\n"


@pytest.mark.parametrize(
    "text",
    [
        '[gpu.main]\naws = { instance_id = "i-2" }\n',
        '[gpu.main]\naws.instance_id = "i-2"\n',
        '[gpu."main".aws]\ninstance_id = "i-2"\n',
        '[gpu.main.aws]\n"instance_id" = "i-2"\n',
        '[gpu.main.aws]\ninstance_id = """\ni-2"""\n',
    ],
)
def test_what_is_written_in_another_way_is_left_to_people(text: str) -> None:
    with pytest.raises(ConfigError, match="set instance_id by hand"):
        with_keys(text, PLACE, {"instance_id": "i-3"})
