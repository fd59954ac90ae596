"""The shape of the code, as numbers that may only shrink: rooms, arrows between them, probing, branches.

The order of the rooms, and that no import goes upwards, is in tests/docs/test_design.py.
"""

from __future__ import annotations

import ast

from fenced import ROOT
from house import PACKAGE, arrows, rooms, sources

MOST_ROOMS, MOST_ARROWS, MOST_ENTRIES, MOST_PROBES, LONGEST_FILE = 25, 128, 28, 25, 400
"""Before the rooms `report` and `references` came, the package had 95 arrows and 25 entries; before `planning`, 116 and 27.
An engine that samples has to know the folder of the base: one arrow more, from `sampling` to `folders`.
A reward of tunes is a reward: one more, from `tunes` to `rewards`. No metric reads logits any more: one fewer, from `metrics`
to `losses`. Ogg is written block by block in one place: one more, from `audio` to `files`.
"""


def test_there_are_few_rooms_and_few_arrows_between_them() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(rooms()) <= MOST_ROOMS
    assert len(arrows()) <= MOST_ARROWS
    assert len(entries) <= MOST_ENTRIES


def test_no_two_rooms_need_each_other() -> None:
    remaining = arrows()
    while free := {room for room in rooms() if room not in {first for first, _ in remaining}} & {
        b for _, b in remaining
    }:
        remaining = {(first, second) for first, second in remaining if second not in free}
    assert remaining == set(), "a circle of imports"


def test_attributes_are_probed_at_borders_only() -> None:
    """getattr and hasattr: a protocol says what every part has. Foreign libraries keep no protocol of ours."""
    probes = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
    ]
    assert len(probes) <= MOST_PROBES, probes


def test_files_are_read_in_one_sitting() -> None:
    lengths = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in sources()}
    assert {file: length for file, length in lengths.items() if length > LONGEST_FILE} == {}
