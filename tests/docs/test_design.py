"""docs/design.md: its list of rooms is the order of the imports."""

from __future__ import annotations

import re

from fenced import ROOT
from house import arrows, rooms

UPWARDS: set[tuple[str, str]] = set()


def listed() -> list[str]:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = page[page.index("## Rooms") : page.index("## The way of the data")]
    return re.findall(r"^    (\w+)  +\S", section, re.MULTILINE)


def test_every_room_is_listed_once() -> None:
    assert sorted(listed()) == sorted(rooms())


def test_rooms_import_only_from_rooms_above() -> None:
    place = {room: number for number, room in enumerate(listed())}
    assert {(room, other) for room, other in arrows() if place[other] > place[room]} == UPWARDS
