"""docs/keys.md: it is what docs/keys.py writes; it has every key of the shipped recipes, and the defaults that a fit has."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fenced import ROOT
from scripts import script

from cfg_distill.cli import main

PAGE = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
_SECTION = re.compile(r"^#{3,4} `([\w.]+)`\n(.*?)(?=^#{2,4} |\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = {match[1]: match[2] for match in _SECTION.finditer(PAGE)}
CLASSES = [path for path in SECTIONS if path.startswith("cfg_distill.")]


@pytest.fixture(scope="module")
def keys() -> Any:
    """docs/keys.py as a module."""
    return script(ROOT / "docs/keys.py")


def rows(section: str) -> dict[str, str]:
    """Key -> default, as the table of a section writes them."""
    lines = re.findall(r"^\| `(\w+)` \| .+? \| (.*?) \| .* \|$", SECTIONS[section], re.MULTILINE)
    assert len(lines) == len(dict(lines)), "a key is listed twice"
    return dict(lines)


# The page is what the docstrings say


def test_the_page_is_fresh(keys: Any) -> None:
    assert keys.main(["--check"]) == 0, "run: python docs/keys.py"


def test_a_stale_page_is_told_and_mended(
    keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keys, "PAGE", tmp_path / "keys.md")
    keys.PAGE.write_text(PAGE.replace("| `3.0` |", "| `1.0` |"))
    assert keys.main(["--check"]) == 1
    assert "python docs/keys.py" in capsys.readouterr().err
    assert keys.PAGE.read_text() != PAGE
    assert keys.main([]) == 0
    assert keys.PAGE.read_text() == PAGE


def test_every_key_says_what_it_is() -> None:
    bare = {"shortest", "longest"}  # of segments: said at the class
    for section in SECTIONS:
        for name, meaning in re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", SECTIONS[section], re.MULTILINE):
            assert meaning.strip() or name in bare, f"{section}.{name} has no text in its docstring"


# Keys and defaults, from the signatures


def found(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def signature_of(cls: type, inherited: bool = False) -> dict[str, Any]:
    """Name -> default of each argument of a class; with ``inherited`` those of its bases too, where it takes ``**``."""
    if dataclasses.is_dataclass(cls):
        made = {f.name: f.default_factory() for f in dataclasses.fields(cls) if callable(f.default_factory)}  # type: ignore[misc]
        return {p.name: p.default for p in inspect.signature(cls).parameters.values()} | made
    arguments: dict[str, Any] = {}
    for base in cls.__mro__:
        if not base.__module__.startswith("cfg_distill"):
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        arguments = named | arguments
        if not inherited or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    arguments.pop("params", None)  # of an optimiser
    return arguments


@pytest.mark.parametrize("class_path", CLASSES)
def test_every_key_and_its_default(class_path: str) -> None:
    expected = signature_of(found(class_path), inherited=True)
    table = rows(class_path)
    # A class with ** may give some of its base's arguments itself: those are no keys.
    assert signature_of(found(class_path)).keys() <= table.keys() <= expected.keys()
    for name, written in table.items():
        default = expected[name]
        if default is inspect.Parameter.empty:
            assert written in ("required", ""), name
        elif default is None or isinstance(default, (bool, int, float, str, list)) or default == {}:
            assert yaml.safe_load(written.strip("`")) == default, name


@pytest.mark.parametrize("name", ["ReverseKL", "ForwardKL", "JensenShannon", "EntropyAwareKL"])
def test_every_divergence_has_the_keys_of_all(name: str) -> None:
    common = {"weight", "warmup_steps", "temperature", "score_term", "codebook_weights"}
    assert rows(f"cfg_distill.losses.{name}").keys() >= common


def test_defaults_are_what_a_fit_without_the_key_gets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guidance itself has another default than the module gives it: the page shows the module's."""
    (folder / "prompts.txt").write_text("a jig\n")
    recipe = {
        "model": {
            "generator": {"class_path": "cfg_distill.generators.CausalLM"},
            "losses": {"kl": {"class_path": "cfg_distill.losses.ReverseKL"}},
        },
        "data": {"class_path": "cfg_distill.data.PromptData", "init_args": {"train": "prompts.txt"}},
    }
    (folder / "bare.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "bare.yaml", "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    places = {
        "cfg_distill.CFGDistillation": config["model"],
        "cfg_distill.generators.CausalLM": config["model"]["generator"]["init_args"],
        "cfg_distill.losses.ReverseKL": config["model"]["losses"]["kl"]["init_args"],
        "cfg_distill.data.PromptData": config["data"].get("init_args", config["data"]),
    } | {name: config["model"][name.removeprefix("model.")] for name in SECTIONS if name.startswith("model.")}
    assert "model.guidance" in places
    for section, values in places.items():
        for name, written in rows(section).items():
            if written in ("required", ""):
                continue
            value = values.get(name)  # null is not printed
            if isinstance(value, dict) and "class_path" in value:
                value = value["class_path"]
            assert yaml.safe_load(written.strip("`")) == value, f"{section}.{name}"
    assert rows("model.guidance")["scale"] == "`3.0`"


# Nothing is left out


def uses(value: Any) -> Iterator[tuple[str, set[str]]]:
    """Each class that a piece of YAML names, with the keys that it gives it."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value["class_path"], set(value.get("init_args") or {})
        for each in value.values():
            yield from uses(each)
    elif isinstance(value, list):
        for each in value:
            yield from uses(each)


SHIPPED = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_of_every_shipped_recipe(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for class_path, used in uses(content):
        if class_path.startswith("cfg_distill."):
            known = rows(class_path) if class_path in SECTIONS else {}
            assert f"`{class_path}`" in PAGE, class_path
            assert used <= known.keys(), class_path
    if "class_path" not in (model := content.get("model", {"class_path": ""})):
        assert model.keys() <= rows("cfg_distill.CFGDistillation").keys()
        for group in (name for name in SECTIONS if name.startswith("model.")):
            assert (model.get(group.removeprefix("model.")) or {}).keys() <= rows(group).keys()
        assert (model.get("generator", {}).get("init_args", {}).get("lora") or {}).keys() <= rows("LoRA").keys()
    if "fits" in content:
        study = "cfg_distill.study.config.Study"
        assert content.keys() <= rows(study).keys()
        assert content["evaluation"].keys() <= rows("evaluation").keys()
        assert content["evaluation"]["headline"].keys() <= rows("evaluation.headline").keys()
        # The type of a key leads to the section of its values.
        section_of = dict(re.findall(r"^\| `(\w+)` \| (?:names, each )?\[(\w+)\]", SECTIONS[study], re.MULTILINE))
        assert (content.get("claims") or {}).keys() <= rows(section_of["claims"]).keys()
        for group in ("fits", "merges", "baselines", "systems"):
            for each in (content.get(group) or {}).values():
                assert each.keys() <= rows(section_of[group]).keys()


@pytest.mark.parametrize(
    "room", ["generators", "losses", "rewards", "references", "sampling", "embedders", "callbacks"]
)
def test_no_part_is_left_out(room: str) -> None:
    helpers = {"DecodingState", "Encoded", "Guided", "Guidance", "Head", "Prompt", "Scored", "HiddenStates", "Logits"}
    helpers |= {"Frozen", "Places", "Predictor", "Banks", "Contrasts", "KernelChoice", "Annealed", "Directions"}
    public = importlib.import_module(f"cfg_distill.{room}")
    for name in set(public.__all__) - helpers:
        part = getattr(public, name)
        if inspect.isclass(part) and not inspect.isabstract(part) and not dataclasses.is_dataclass(part):
            assert f"`cfg_distill.{room}.{name}`" in PAGE, f"{room}.{name} is not described"


def test_every_metric_is_listed_under_its_axis() -> None:
    from cfg_distill.metrics import SampleMetric

    listed = dict(re.findall(r"^\| \[?`(cfg_distill[\w.]+)`.*? \| (quality|diversity|guard) \| ", PAGE, re.MULTILINE))
    for class_path, axis in listed.items():
        assert found(class_path).axis == axis, class_path
    modules = [importlib.import_module(name) for name in ("cfg_distill.metrics", "cfg_distill.tunes.metrics")]
    public = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    metrics = {path for path, part in public.items() if inspect.isclass(part) and issubclass(part, SampleMetric)}
    assert {path for path in metrics if not inspect.isabstract(public[path])} == listed.keys()


def test_every_shipped_recipe_is_listed() -> None:
    recipes = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    shipped = {f"recipes/{path.relative_to(ROOT / 'recipes')}" for path in SHIPPED}
    assert shipped == set(re.findall(r"^\| `(recipes/[\w./]+)`", recipes, re.MULTILINE))
