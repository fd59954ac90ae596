"""The site of `make docs`: every page is in it, and its reference names modules that there are."""

from __future__ import annotations

import importlib
import importlib.util
import re

import yaml
from fenced import ROOT
from scripts import script


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"))
    rooms = [room for entry in config["nav"] for room in entry.values()]
    named = [page for room in rooms for page in ([room] if isinstance(room, str) else room)]
    assert sorted(named) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    assert config["strict"] is True and config["theme"]["font"] is False  # fonts would come from another server


def test_the_reference_names_what_there_is() -> None:
    page = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        module, _, last = name.rpartition(".")
        if last[0].isupper():
            assert last in vars(importlib.import_module(module)), name
        else:
            assert importlib.util.find_spec(name) is not None, name


def test_links_out_of_the_pages_become_text() -> None:
    assert script(ROOT / "docs/site.py").on_page_markdown(
        "[contributing](../CONTRIBUTING.md#rules) and [keys](keys.md)"
    ) == ("contributing (`CONTRIBUTING.md`) and [keys](keys.md)")
