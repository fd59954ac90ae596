"""docs/method.md, and the pages that translate words into keys: every name in them exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from fenced import ROOT, blocks

from cfg_distill.cli import main

PAGE = (ROOT / "docs/method.md").read_text(encoding="utf-8")
TRANSLATIONS = "".join(
    (ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("paper.md", "glossary.md", "coming_from.md")
)
NAMES = sorted(set(re.findall(r"`(cfg_distill(?:\.\w+)+)`", PAGE + TRANSLATIONS)))
KEYS = sorted(set(re.findall(r"`((?:model|data|trainer|evaluation|claims)(?:\.\w+)+)`", TRANSLATIONS)))


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


@pytest.mark.parametrize("key", KEYS)
def test_every_key_exists(key: str) -> None:
    """By its last part: a key of that name is described."""
    keys = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
    last = key.rpartition(".")[2]
    of_lightning = {"accumulate_grad_batches", "devices", "logger"}
    in_a_dict = {"kl", "diversity"}
    assert last in of_lightning | in_a_dict or f"| `{last}` |" in keys


def test_the_recipe_of_the_paper_is_one(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found_blocks = blocks("docs/paper.md")
    for block in found_blocks:
        if block.file is not None:
            (desk / block.file).write_text(block.text, encoding="utf-8")
    (words,) = [words for block in found_blocks if block.language == "sh" for words in block.commands()]
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code == 0
    assert "reduction: sum" in capsys.readouterr().out
