"""docs/musicgen.md: its computed table is the one that the formulas give, and the files it names are there."""

from __future__ import annotations

import re

from benchmarks.musicgen_sizes import tables
from fenced import ROOT

from cfg_distill.folders import RECIPES

PAGE = (ROOT / "docs/musicgen.md").read_text(encoding="utf-8")


def test_the_table_of_memory_is_computed() -> None:
    assert tables() in PAGE


def test_files_that_it_names_are_there() -> None:
    for name in re.findall(r"recipes/(musicgen/[\w/.]+\w)", PAGE):
        assert (RECIPES / name).is_file(), name
    for name in re.findall(r"`(test_musicgen\w*\.py)`", PAGE):
        assert (ROOT / "tests/generators" / name).is_file(), name
