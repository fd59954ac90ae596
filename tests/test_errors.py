"""Problems: keys relative to the part, rendered by the face; and parts of users that speak as in version 0.1."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from cfg_distill.errors import ConfigError, Context, Problem, joined, nearest, problems_of, together
from cfg_distill.generators.frozen import Frozen


def test_a_problem_is_prefixed_by_its_holders_and_rendered_as_key_or_option() -> None:
    own = Problem(
        "momentum", "expected a number in [0, 1), but got 2. See `@.baseline` and `@/model.sampling.samples`."
    )
    held = own.under("rewards.distance.init_args").under("model.losses.diversity.init_args.reward.init_args")
    path = "model.losses.diversity.init_args.reward.init_args.rewards.distance.init_args"
    assert held.path == f"{path}.momentum"
    assert str(held) == (
        f"Key `{path}.momentum`: expected a number in [0, 1), but got 2. See `{path}.baseline` and `model.sampling.samples`."
    )
    options = {f"{path}.momentum": "--momentum", "model.sampling.samples": "--samples"}
    assert held.told(options).startswith("Option `--momentum`: ") and held.told(options).endswith("and `--samples`.")
    assert str(Problem("", "Model `a`: broken.").under("")) == "Model `a`: broken."
    assert str(Problem("[3].window", "wrong").under("trainer.callbacks")) == "Key `trainer.callbacks[3].window`: wrong"
    assert joined("", "a") == "a" and joined("a", "") == "a"


def test_a_path_from_the_root_stays_one() -> None:
    problem = Problem("/model.sampling.samples", "expected 3, but got 1.")
    assert str(problem.under("model")) == "Key `model.sampling.samples`: expected 3, but got 1."
    asked = problem.under("reward.init_args").under("model.losses.diversity.init_args")
    assert str(asked) == (
        "Key `model.sampling.samples` for `model.losses.diversity.init_args.reward`: expected 3, but got 1."
    )


def test_a_constructor_that_forgot_its_base_is_named() -> None:
    class Judge(nn.Module):
        def __init__(self) -> None:
            self.width = 3

        def problems(self) -> list[Problem]:
            raise AssertionError("asked")

    (problem,) = problems_of(Judge(), under="model.reward")
    assert str(problem) == "Key `model.reward`: `Judge.__init__` does not call `super().__init__()`. Call it first."
    with pytest.raises(ConfigError, match=r"`Judge.__init__` does not call"):
        Frozen(Judge())


def test_problems_in_one_sentence_are_one_problem() -> None:
    assert list(map(str, problems_of(SimpleNamespace(problems=lambda: "Wrong.")))) == ["Wrong."]


def test_paths_of_the_user_in_a_sentence_are_left_as_they_are() -> None:
    told = str(Problem("path", "expected a folder, but `/nowhere`, `.hidden` and `./here` are none.").under("model"))
    assert told == "Key `model.path`: expected a folder, but `/nowhere`, `.hidden` and `./here` are none."


def test_config_error_holds_problems_whatever_it_was_given() -> None:
    error = ConfigError(["a sentence", Problem("scale", "wrong")])
    assert str(error) == "a sentence\nKey `scale`: wrong"
    assert [problem.path for problem in error.under("model")] == ["model", "model.scale"]
    assert ConfigError("one").problems == [Problem("", "one")]


class Now:
    def problems(self, context: Context) -> list[Problem]:
        return [Problem("key", f"of {context.samples}")]


class Then:
    def problems(self, group: int) -> list[str]:
        return [f"a sentence of {group}"]


class Bare:
    def problems(self) -> list[str]:
        return ["another"]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (Now(), "Key `a.key`: of 4"),
        (Then(), "Key `a`: a sentence of 4"),
        (Bare(), "Key `a`: another"),
    ],
)
def test_parts_are_asked_in_the_way_they_were_written(part: object, told: str) -> None:
    assert [str(problem) for problem in problems_of(part, Context(samples=4), "a")] == [told]


def test_a_part_without_problems_has_none() -> None:
    assert problems_of(object()) == []


def test_nearest() -> None:
    assert nearest("qualty", ["quality", "diversity"]) == " Did you mean `quality`?"
    assert nearest("zzz", ["quality"]) == ""


def test_many_problems_that_differ_in_their_key_alone_are_one_sentence() -> None:
    """Ten keys that name one missing model are one problem to mend. No key is kept back, and nothing is said twice."""
    missing = "expected the package `x`, but it is not installed."
    many = [Problem(f"baselines.{number}.model", missing) for number in range(6)]
    elsewhere, plain = Problem("/model.lora", missing, "fits.a.init_args"), Problem("", missing)
    keys = ", ".join(f"`baselines.{number}.model`" for number in range(6))
    assert together([*many, elsewhere, plain, many[0], plain]) == [f"Keys {keys}: {missing}", str(elsewhere), missing]
    assert together(many[:3]) == [str(problem) for problem in many[:3]]
    sibling = [Problem(key, "see `@.negative`.", "model.guidance") for key in "abcd"]
    assert together(sibling)[0].endswith("`model.guidance.d`: see `model.guidance.negative`.")
