"""docs/method.md: every name in it exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from fenced import ROOT

PAGE = (ROOT / "docs/method.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(cfg_distill(?:\.\w+)+)`", PAGE)))


def found(dotted: str) -> Any:
    """The module, class, function or method of a dotted name."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            part: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            part = getattr(part, name)
        return part
    raise AssertionError(dotted)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name: str) -> None:
    assert found(name) is not None


def test_bare_names_are_classes_of_losses() -> None:
    losses = importlib.import_module("cfg_distill.losses")
    for name in re.findall(r"`; (?:in a recipe )?`(\w+)`", PAGE):
        assert hasattr(losses, name)
