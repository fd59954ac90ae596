"""The walk over a recipe: every wrong key, type and class at once, and what is left of the recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.recipe.checks import Walk, without_echoes
from cfg_distill.recipe.classes import find_class


class Part(ABC):
    @abstractmethod
    def run(self) -> None: ...


class Big(Part):
    def __init__(self, weight: float = 1.0, steps: int = 0) -> None: ...
    def run(self) -> None: ...


class Lacking(Part):
    def runs(self) -> None: ...


class Named(Part):
    def __init__(self, name: str, inner: Part | None = None) -> None: ...
    def run(self) -> None: ...


@dataclass
class Settings:
    scale: float = 1.0
    negative: str | None = None


class Whole:
    def __init__(
        self,
        part: Part,
        parts: dict[str, Part] = {},  # noqa: B006
        listed: list[Part] = [],  # noqa: B006
        settings: Settings = Settings(),
        reduction: Literal["sum", "mean"] = "mean",
        optimizer: Callable[[Iterable], torch.optim.Optimizer] = torch.optim.AdamW,
        count: int = 1,
    ) -> None: ...


def path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def walked(recipe: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Whole, "model")
    walk = Walk()
    left = walk.keys(parser, {"model": recipe})["model"]
    return list(map(str, walk.problems)), left


GOOD = {
    "part": {"class_path": path(Big), "init_args": {"weight": "1e-3", "steps": 2}},
    "parts": {"a": {"class_path": path(Named), "init_args": {"name": "n", "inner": {"class_path": path(Big)}}}},
    "listed": [{"class_path": path(Big)}],
    "settings": {"scale": 3, "negative": None},
    "reduction": "sum",
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
    "count": 3,
}


def test_nothing_is_wrong_with_a_good_recipe() -> None:
    problems, left = walked(GOOD)
    assert problems == []
    assert left["settings"] == GOOD["settings"] and left["optimizer"] == GOOD["optimizer"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cuont": 1}, "Key `model.cuont`: no such key. Did you mean `count`?"),
        ({"count": "three"}, "Key `model.count`: expected a whole number, but got 'three'."),
        ({"count": None}, "Key `model.count`: expected a whole number, but it is empty."),
        ({"settings": {"scal": 1}}, "Key `model.settings.scal`: no such key. Did you mean `scale`?"),
        ({"settings": 3}, "Key `model.settings`: expected keys and values, but got 3."),
        ({"reduction": "maen"}, "expected one of 'sum', 'mean', but got 'maen'. Did you mean `mean`?"),
        (
            {"part": {"class_path": path(Big), "init_args": {"wieght": 1}}},
            "`model.part.init_args.wieght`: no such key.",
        ),
        ({"part": {"class_path": path(Big), "weight": 1}}, "Key `model.part.weight`: no such key beside `class_path`."),
        ({"part": {"init_args": {"weight": 1}}}, "Key `model.part.class_path`: expected a Part by its import path"),
        ({"part": {"class_path": "./parts/big.yaml"}}, "(`module.Class`), but got `./parts/big.yaml`"),
        ({"part": {"class_path": "nix.Big"}}, "but for `nix.Big` there is no module `nix`"),
        ({"part": {"class_path": path(Big) + "g"}}, "has no `Bigg`. Did you mean `Big`?"),
        ({"part": {"class_path": path(Settings)}}, f"expected a Part, but `{path(Settings)}` is none."),
        ({"part": {"class_path": path(Part)}}, "is abstract. Name one of its kinds. Known: Big, Named."),
        (
            {"part": {"class_path": path(Lacking)}},
            f"expected a Part, but `{path(Lacking)}` lacks `run`. It has `runs`.",
        ),
        ({"part": {"class_path": "Bgi"}}, "got `Bgi`. Did you mean `Big`?"),
        ({"part": {"class_path": path(Named)}}, "Key `model.part.init_args.name`: expected text, but it is missing."),
        (
            {"parts": {"a": {"class_path": path(Named), "init_args": {"name": "n", "inner": {"class_path": "x.Y"}}}}},
            "Key `model.parts.a.init_args.inner.class_path`",
        ),
        ({"listed": [{"class_path": path(Big)}, {"class_path": "x.Y"}]}, "Key `model.listed[1].class_path`"),
        (
            {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentm": 1}}},
            "Key `model.optimizer.init_args.momentm`: no such key. Did you mean `momentum`?",
        ),
    ],
)
def test_every_kind_of_mistake(change: dict[str, Any], said: str) -> None:
    problems, _ = walked(GOOD | change)
    assert len(problems) == 1 and said in problems[0], problems


def test_a_misspelled_name_of_a_part_is_told_its_neighbour() -> None:
    problems, left = walked(GOOD | {"parts": {"alpha": {"class_path": path(Big)}, "alpah": {"weight": 2}}})
    missing = "Key `model.parts.alpah.class_path`: expected a Part by its import path, but it is missing."
    assert problems == [f"{missing} Did you mean `alpha`?"]
    assert list(left["parts"]) == ["alpha"]


def test_a_misspelled_class_path_is_named() -> None:
    problems, _ = walked(GOOD | {"parts": {"alpha": {"clas_path": path(Big)}, "beta": {"class_path": path(Big)}}})
    assert problems == ["Key `model.parts.alpha.clas_path`: no such key. Did you mean `class_path`?"]


def make_big() -> Big:
    return Big()


def test_a_function_stands_for_a_class_only_where_it_may() -> None:
    assert find_class(path(Big), (Part,), "a Part") is Big
    with pytest.raises(ConfigError, match="no class"):
        find_class(f"{Big.__module__}.make_big", (Part,), "a Part")
    assert find_class(f"{Big.__module__}.make_big", (Part,), "a Part", functions=True) is make_big


def test_echoes_are_told_by_their_keys() -> None:
    found = [Problem("model.losses.kl.class_path", "expected a Loss."), Problem("data.batch_size", "expected more.")]
    inside = [
        Problem("losses", "expected at least one loss.").under("model"),
        Problem("batch_size", "expected more.").under("data"),
        Problem("batch", "expected less.").under("data"),
        Problem("", "Model `x` is not there."),
    ]
    assert list(map(str, without_echoes(found, inside))) == [
        "Key `model.losses.kl.class_path`: expected a Loss.",
        "Key `data.batch_size`: expected more.",
        "Key `data.batch`: expected less.",
        "Model `x` is not there.",
    ]


def test_all_of_them_at_once_and_the_rest_is_left() -> None:
    wrong = {
        "parts": {"a": {"class_path": path(Big), "init_args": {"weight": "x", "steps": 2}}, "b": {"class_path": "x.Y"}},
        "count": "x",
        "sum": 1,
    }
    problems, left = walked(GOOD | wrong)
    assert len(problems) == 4
    assert left["parts"] == {"a": {"class_path": path(Big), "init_args": {"steps": 2}}}
    assert "count" not in left and "sum" not in left and left["reduction"] == "sum"


def test_a_misspelled_required_key_is_one_mistake() -> None:
    problems, _ = walked({"prat": GOOD["part"]})
    assert problems == ["Key `model.prat`: no such key. Did you mean `part`?"]
    assert walked({})[0] == ["Key `model.part`: expected a Part, but it is missing. Set it."]
