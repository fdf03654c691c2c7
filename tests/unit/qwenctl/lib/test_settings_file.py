"""`SettingsFile`: what a program chooses. The rest is tested with the settings of both programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from qwenctl.errors import ConfigError
from qwenctl.lib.settings_file import SettingsFile


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    deep: int = 0


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int
    words: tuple[str, ...] = ()
    table: Inner = Inner()


def refused(env: dict[str, str] | None = None, path: Path | None = None, **choices: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        SettingsFile(Model, "X_", **{"shows": lambda _: True, **choices}).load(path, env or {})
    return str(raised.value)


def test_variables_set_keys_of_tables() -> None:
    env = {"X_COUNT": "3", "X_TABLE__DEEP": "4", "X_WORDS": '["a"]', "COUNT": "5"}
    loaded = SettingsFile(Model, "X_", shows=lambda _: True).load(None, env)
    assert loaded == Model(count=3, words=("a",), table=Inner(deep=4))


def test_an_error_names_the_variable_or_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("count = 'a'\n")
    assert refused({"X_TABLE__DEEP": "b"}, file).splitlines() == [
        (
            f"{file}: count: input should be a valid integer, unable to parse string as an integer, "
            "found 'a'"
        ),
        (
            "X_TABLE__DEEP (table.deep): input should be a valid integer, unable to parse string as "
            "an integer, found 'b'"
        ),
    ]


def test_a_value_is_shown_only_where_that_is_allowed() -> None:
    assert "hush" in refused({"X_COUNT": "hush"})
    assert "hush" not in refused({"X_COUNT": "hush"}, shows=lambda place: place != ["count"])


def test_what_is_read_as_json() -> None:
    env = {"X_COUNT": "1", "X_TABLE": '{"deep": "b"}'}
    assert "X_TABLE" not in refused(env)  # it is a table, and `deep` in it is wrong
    assert refused(env, json_starts="[").startswith("X_TABLE (table): input should be a table")


def test_advice_for_files_and_missing_keys(tmp_path: Path) -> None:
    absent = tmp_path / "none.toml"
    assert refused(path=absent, absent="; make it") == (
        f"cannot read {absent}: No such file or directory; make it"
    )
    assert refused(path=tmp_path, unreadable="; sudo?").endswith(": Is a directory; sudo?")
    assert refused() == "the environment: count: field required"
    assert refused(no_key=" is missing: {variable}") == "the environment: count is missing: X_COUNT"


def test_variables_that_are_no_settings() -> None:
    alone = refused({"X_COUNT": "3"}, keys_of=lambda _: [])
    assert alone == "the environment: count: field required"
