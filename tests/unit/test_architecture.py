"""The pictures of docs/architecture.md say what the code's imports say."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import grimp
import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("qwenctl", "proxy", "gpu_node")
ARROW = re.compile(r"^\s*(\S+?)(?:\[.*?\])? (-->|-\.->)(?:\|.*?\|)? (\S+?)(?:\[.*?\])?$")


@lru_cache(maxsize=1)
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def pictures() -> dict[str, list[tuple[str, str, str]]]:
    """Title of each picture → its arrows: from, kind, to."""
    found = {}
    for title, body in re.findall(
        r"^#+ (.+)\n(?:(?!#).*\n)*?```mermaid\n([\s\S]*?)```", PAGE, re.MULTILINE
    ):
        lines = [line for line in body.splitlines() if "-->" in line or "-.->" in line]
        arrows = [ARROW.match(line) for line in lines]
        assert all(arrows), [line for line, arrow in zip(lines, arrows) if arrow is None]
        found[title] = [(arrow[1], arrow[2], arrow[3]) for arrow in arrows if arrow]
    return found


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def rooms() -> set[str]:
    return {
        f"{package}.{path.stem}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if path.is_dir() and (path / "__init__.py").exists()
    }


def room_imports() -> set[tuple[str, str]]:
    known, found = rooms(), set()
    for module in graph().modules:
        for other in graph().find_modules_directly_imported_by(module):
            pair = room_of(module), room_of(other)
            if pair[0] != pair[1] and set(pair) <= known:
                found.add(pair)
    return found


def reachable(arrows: set[tuple[str, str]], start: str) -> set[str]:
    found: set[str] = set()
    edge = {start}
    while edge:
        edge = {b for a, b in arrows if a in edge} - found
        found |= edge
    return found


def test_the_picture_of_the_rooms_shows_each_room_and_only_real_imports() -> None:
    drawn = {(a, b) for a, _, b in pictures()["Rooms"]}
    assert {room for arrow in drawn for room in arrow} == rooms()
    assert drawn <= room_imports()


def test_each_import_between_rooms_follows_the_picture() -> None:
    drawn = {(a, b) for a, _, b in pictures()["Rooms"]}
    unexplained = {(a, b) for a, b in room_imports() if b not in reachable(drawn, a)}
    assert unexplained == set()


def test_rooms_have_no_circle() -> None:
    arrows = room_imports()
    assert [room for room in rooms() if room in reachable(arrows, room)] == []


def test_modules_have_no_circle() -> None:
    """Imports within a room may not run in a circle either."""
    arrows = {
        (module, other)
        for module in graph().modules
        for other in graph().find_modules_directly_imported_by(module)
    }
    assert [module for module in graph().modules if module in reachable(arrows, module)] == []


WAYS = ["A request's way", "A lease's way", "A node report's way", "The way of `qwenctl up`"]


@pytest.mark.parametrize("way", WAYS)
def test_each_step_of_a_way_is_an_import(way: str) -> None:
    """Solid arrows: imports. Dotted ones: a message or a call back; both ends must exist."""
    arrows = pictures()[way]
    assert len(arrows) >= 4
    for start, kind, end in arrows:
        for module in (start, end):
            assert module in graph().modules or (ROOT / module).exists(), module
        if kind == "-->":
            assert end in graph().find_modules_directly_imported_by(start), (start, end)


def test_paths_in_the_contributors_guide_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:qwenctl|proxy|gpu_node|tests|docs)/[\w/.-]+)`", text)
    assert len(paths) > 10
    assert [path for path in paths if not Path(ROOT, path).exists()] == []


def test_no_file_is_over_600_lines() -> None:
    files = [file for room in (*PACKAGES, "tests") for file in (ROOT / room).rglob("*.py")]
    sizes = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(sizes) > 300
    assert {file: size for file, size in sizes.items() if size > 600} == {}
