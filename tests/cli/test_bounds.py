"""Numbers that make no sense are refused before a weight is loaded, all at once."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from torch.optim import LBFGS, SGD, AdamW, Muon, SparseAdam
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, ReduceLROnPlateau
from transformers.optimization import Adafactor

from cfg_distill.distillation.rehearsal import problems_of_steps
from cfg_distill.recipe.bounds import TRAINER, Bounds, bounds_of, wrong_number
from cfg_distill.recipe.checks import Walk


class Part:
    def __init__(
        self,
        weight: float = 1.0,
        listed: tuple[float, ...] = (),
        named: dict[str, float] | None = None,
        name: str = "",
        anything: Any = 0,
    ) -> None: ...


def problems(values: dict[str, Any], bounds: dict[str, Bounds] | None = None) -> tuple[list[str], dict[str, Any]]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Part, fail_untyped=False)
    walk = Walk()
    good = walk.keys(parser, values, bounds=bounds)
    assert walk.problems == walk.passed
    return [str(problem) for problem in walk.problems], good


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, ".nan", "-.inf"])
def test_a_number_is_finite_under_every_key(wrong: Any) -> None:
    said, good = problems({"weight": wrong, "name": "nan"})
    assert len(said) == 1 and said[0].startswith("Key `weight`: expected a finite number, but got")
    assert good == {"name": "nan"}


def test_numbers_inside_of_others_are_seen() -> None:
    said, good = problems({"listed": [1.0, math.nan], "named": {"a": math.inf}})
    assert [each.split("`")[1] for each in said] == ["listed", "named"] and good == {}
    assert problems({"listed": [1.0], "named": {"a": 2.0}, "anything": "x"})[0] == []


def test_bounds_of_a_key() -> None:
    bounds = {"weight": Bounds(0, "a number above 0", without_low=True, also=(-1,))}
    assert problems({"weight": 0}, bounds)[0] == [
        "Key `weight`: expected a number above 0, but got 0.0. Write such a number, or leave the key out."
    ]
    assert problems({"weight": -1}, bounds)[0] == problems({"weight": 3}, bounds)[0] == []


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        ("gradient_clip_val", [0, 1.0], [-1]),
        ("val_check_interval", [1, 0.5, "00:15:00"], [0, -1, "0"]),
        ("accumulate_grad_batches", [1, 8], [0, -1]),
        ("max_steps", [1, -1], [0, -2, math.nan]),
        ("devices", ["auto", 1, "2", [0, 1], -1], [0, -2, "-3"]),
    ],
)
def test_bounds_of_the_trainer(key: str, good: list[Any], wrong: list[Any]) -> None:
    assert [wrong_number(value, TRAINER[key]) for value in good] == [""] * len(good)
    assert [wrong_number(value, TRAINER[key]) for value in wrong] == [TRAINER[key].words] * len(wrong)


def test_bounds_follow_the_class() -> None:
    assert bounds_of(AdamW)["lr"].words == "a number above 0"
    assert bounds_of(LinearLR)["total_iters"].words == "at least 1"
    assert bounds_of(Part) == {}


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "said"),
    [
        (partial(SGD, lr=0.1), partial(ConstantLR, factor=1.0), ""),
        (partial(SGD, lr=0.1), partial(CosineAnnealingLR, T_max=5), ""),
        (partial(SGD, lr=0.1), ReduceLROnPlateau, "Key `scheduler`: .*ReduceLROnPlateau waits for a metric. Take"),
        (AdamW, partial(ConstantLR, factor=1.0), ""),
        (partial(AdamW, betas=(0.9, 1.5)), ConstantLR, "Key `optimizer`: .*Invalid beta parameter"),
        (partial(SGD, lr=0.1, nesterov=True), ConstantLR, "Key `optimizer`: .*Nesterov momentum requires"),
        (LBFGS, ConstantLR, "Key `optimizer`: .*LBFGS computes the loss again. Take AdamW"),
        (SparseAdam, ConstantLR, "Key `optimizer`: .*SparseAdam does not support dense gradients"),
        (Adafactor, ConstantLR, "Key `optimizer.init_args.lr`: .* it is empty.* `relative_step: false`"),
        (partial(Adafactor, lr=1e-3, relative_step=False), ConstantLR, ""),
        (Muon, ConstantLR, ""),  # of a matrix
        (partial(SGD, lr=0.1), partial(CosineAnnealingLR, T_max=0), "Key `scheduler`: .*refuses them"),
        (partial(SGD, lr=0.1), partial(LinearLR, start_factor=2.0), "Key `scheduler`: .*Starting multiplicative factor"),
        (partial(SGD, lr=0.1), partial(LambdaLR, lr_lambda=lambda step: -1.0), "learning rates of at least 0"),
    ],
)  # fmt: skip
def test_optimiser_and_scheduler_are_tried(optimizer: Any, scheduler: Any, said: str) -> None:
    import re

    found = "\n".join(map(str, problems_of_steps(optimizer, scheduler)))
    assert re.search(said, found) if said else found == ""
