"""docs/recipes.md: its tables hold every key of every class they are about, with the default that the code has."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest
import yaml
from fenced import ROOT

PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
_SECTION = re.compile(r"^#### `(cfg_distill[\w.]+)`\n(.*?)(?=^#{2,4} |\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = {match[1]: match[2] for match in _SECTION.finditer(PAGE)}
KL_KEYS = {"weight", "warmup_steps", "temperature", "score_term", "codebook_weights"}


def found(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def keys_of(cls: type) -> dict[str, Any]:
    """Name -> default of each named argument; lists and dicts that a factory makes are made."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} | made


def rows(text: str) -> dict[str, str]:
    """Key -> default, as the table writes them."""
    lines = re.findall(r"^\| `(\w+)` \| .+? \| (.+?) \| .+ \|$", text, re.MULTILINE)
    assert len(lines) == len(dict(lines)), "a key is listed twice"
    return dict(lines)


@pytest.mark.parametrize("class_path", SECTIONS)
def test_every_key_and_its_default(class_path: str) -> None:
    keys = keys_of(found(class_path))
    if "The keys of ReverseKL, and:" in SECTIONS[class_path]:
        assert keys.keys() >= KL_KEYS
        keys = {name: default for name, default in keys.items() if name not in KL_KEYS}
    table = rows(SECTIONS[class_path])
    assert table.keys() == keys.keys()
    for name, written in table.items():
        default = keys[name]
        if default is inspect.Parameter.empty:
            assert written == "required", name
        elif default is None or isinstance(default, (bool, int, float, str, list)) or default == {}:
            assert yaml.safe_load(written.strip("`")) == default, name


def test_forward_kl_is_as_the_page_says() -> None:
    assert keys_of(found("cfg_distill.losses.ForwardKL")) == keys_of(found("cfg_distill.losses.ReverseKL"))


@pytest.mark.parametrize("room", ["losses", "rewards", "embedders", "callbacks"])
def test_no_part_is_left_out(room: str) -> None:
    public = importlib.import_module(f"cfg_distill.{room}")
    for name in public.__all__:
        part = getattr(public, name)
        if inspect.isclass(part) and not inspect.isabstract(part) and not dataclasses.is_dataclass(part):
            assert f"cfg_distill.{room}.{name}`" in PAGE, f"{room}.{name} is not described"


def test_every_metric_is_listed_under_its_axis() -> None:
    table = PAGE[PAGE.index("## Keys of a metrics file") :]
    listed = re.findall(r"^\| `(cfg_distill[\w.]+)` \| (\w+) \| (.+?) \| ", table, re.MULTILINE)
    from cfg_distill.metrics import SampleMetric

    for class_path, axis, arguments in listed:
        cls = found(class_path)
        assert cls.axis == axis, class_path
        assert set(re.findall(r"`(\w+)`", arguments)) == set(keys_of(cls)), class_path
    modules = [importlib.import_module(name) for name in ("cfg_distill.metrics", "cfg_distill.tunes.metrics")]
    public = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    metrics = {path for path, part in public.items() if inspect.isclass(part) and issubclass(part, SampleMetric)}
    assert {path for path in metrics if not inspect.isabstract(public[path])} == {path for path, *_ in listed}


def test_every_shipped_recipe_is_listed() -> None:
    shipped = {f"recipes/{path.relative_to(ROOT / 'recipes')}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert shipped == set(re.findall(r"^\| `(recipes/[\w./]+)`", PAGE, re.MULTILINE))
