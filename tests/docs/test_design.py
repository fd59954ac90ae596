"""docs/design.md: its list of rooms is the order of the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from fenced import ROOT

PACKAGE = ROOT / "cfg_distill"
UPWARDS: set[tuple[str, str]] = set()


def listed() -> list[str]:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = page[page.index("## Rooms") : page.index("## The way of the data")]
    return re.findall(r"^    (\w+)  +\S", section, re.MULTILINE)


def imported_rooms(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if package == "cfg_distill" and ((PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()) and room:
                yield room


def test_every_room_is_listed_once() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert sorted(listed()) == sorted(rooms - {"__init__"})


def test_rooms_import_only_from_rooms_above() -> None:
    place = {room: number for number, room in enumerate(listed())}
    # glob follows the link of callbacks, rglob does not.
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "callbacks").glob("*.py")]
    wrong = {
        (room, other)
        for file in files
        if (room := file.relative_to(PACKAGE).parts[0].removesuffix(".py")) != "__init__"
        for other in imported_rooms(file)
        if place[other] > place[room]
    }
    assert wrong == UPWARDS
