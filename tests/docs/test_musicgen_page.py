"""docs/musicgen.md: the files that it names are there."""

from __future__ import annotations

import re

from fenced import ROOT

from cfg_distill.folders import RECIPES

PAGE = (ROOT / "docs/musicgen.md").read_text(encoding="utf-8")


def test_files_that_it_names_are_there() -> None:
    for name in re.findall(r"recipes/(musicgen/[\w/.]+\w)", PAGE):
        assert (RECIPES / name).is_file(), name
    for name in re.findall(r"`(test_musicgen\w*\.py)`", PAGE):
        assert (ROOT / "tests/generators" / name).is_file(), name
