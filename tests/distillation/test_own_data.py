"""A data module or a loader of the user's own: which batches a step takes, and attributes that only look like ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_fits import student_of, trainer

from cfg_distill.distillation.prompts import prompts_in
from cfg_distill.errors import ConfigError
from cfg_distill.generators import Prompt
from cfg_distill.metrics import Length
from cfg_distill.recipe.scoring import problems_of_scoring

ROWS = [{"prompt": "w0", "id": 0}, {"prompt": "w1", "id": 1}]


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"prompt": ["w0", "w1"], "id": torch.tensor([0, 1])}, "a dict with the keys prompt, id"),
        ([("w0", "w1"), torch.tensor([0, 1])], "a list of tuple, Tensor"),
        ((("w0", 0), ("w1", 1)), "a tuple of tuple"),
        (ROWS, "a list of dict"),
        (torch.tensor([0, 1]), "a batch of type Tensor"),
        ("w0", "a batch of type str"),
    ],
)
def test_batches_that_are_no_prompts_are_refused(batch: Any, found: str) -> None:
    """Before, the step ended in whatever it tripped over first: KeyError: 0, Boolean value of Tensor."""
    with pytest.raises(ConfigError) as refused:
        prompts_in(batch)
    (problem,) = refused.value.problems
    text = f"expected batches that are lists of texts or Prompts, but got {found}. Give the loader a `collate_fn`."
    assert str(problem) == f"Key `data`: {text}"


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_fit_says_so_at_its_first_batch(tiny_model: str, part: str) -> None:
    rows: Any = torch.utils.data.DataLoader(ROWS, batch_size=2)  # type: ignore[arg-type]
    loaders = [rows] if part == "train" else [[["w0", "w1"]], rows]
    with pytest.raises(ConfigError, match="a dict with the keys prompt, id"):
        trainer([]).fit(student_of(tiny_model), *loaders)


@pytest.mark.parametrize("given", [["w0", "w1"], ("w0", "w1"), [Prompt("w0"), Prompt("w1")]])
def test_texts_and_prompts_are_learnt_from(tiny_model: str, given: Any) -> None:
    loader: Any = torch.utils.data.DataLoader(given, batch_size=2, collate_fn=list)
    trainer([]).fit(student_of(tiny_model), loader)


def test_prompts_have_no_collation_of_torchs_own() -> None:
    """So the page asks for ``collate_fn=list``, which texts do not need."""
    prompts: Any = [Prompt("w0"), Prompt("w1")]
    with pytest.raises(TypeError, match=r"found <class 'cfg_distill\.prompt\.Prompt'>"):
        next(iter(torch.utils.data.DataLoader(prompts, batch_size=2)))
    texts: Any = ["w0", "w1"]
    assert next(iter(torch.utils.data.DataLoader(texts, batch_size=2))) == texts


@pytest.mark.parametrize("prompts", [["w0"], "w0", {"train": "train.txt"}, {"seed": 7}, {"train": [("w0", 0)]}, None])
def test_other_prompts_are_none_of_ours(tiny_model: str, prompts: Any) -> None:
    assert not student_of(tiny_model).problems_of_data(SimpleNamespace(prompts=prompts, files=["train.txt"]))


@pytest.mark.parametrize("files", [["train.txt"], {}, {"train": "train.txt"}])
def test_problems_of_prompts_are_told_whatever_the_files_are(tiny_model: str, files: Any) -> None:
    prompts = {"train": ["w0", Prompt("w1", teacher_prompt="w2")]}
    (problem,) = student_of(tiny_model).problems_of_data(SimpleNamespace(prompts=prompts, files=files))
    assert problem.path == ("train" if "train" in files else "")
    assert "expected a `teacher_prompt`, since 1 other prompt has one" in problem.text


@pytest.mark.parametrize("metrics", [["val/length"], "val/length", {"length": 0.5}, {"length": Length()}, None])
def test_other_metrics_are_none_of_ours(metrics: Any) -> None:
    data: Any = SimpleNamespace(prompts={"validation": ["w0"]}, files={"validation": ""}, field="prompt")
    assert not problems_of_scoring({"trainer.callbacks[0].init_args": SimpleNamespace(metrics=metrics)}, data)
