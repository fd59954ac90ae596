"""The same samples and weights on any number of devices: one, two and four processes, with accumulation and without, whole and
in shards; a run that two processes began goes on on any number.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import pytest
import torch
from forked import in_ranks
from tiny import tiny_folder
from tiny_fits import Even, every_step, snapshot, student_of, trainer

from cfg_distill.callbacks import ExactResume
from cfg_distill.data import PromptData
from cfg_distill.embedders import NGramCounts
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards import PairwiseDiversity

SPLITS = {  # processes, prompts per batch, batches per step: always 8 prompts per step
    "1 x 8": (1, 8, 1),
    "1 x 2, 4 times": (1, 2, 4),
    "2 x 4": (2, 4, 1),
    "2 x 2, twice": (2, 2, 2),
    "4 x 2": (4, 2, 1),  # only to go on with: from the beginning it is in shards
    "4 x 2 in shards": (4, 2, 1),
}
UNBROKEN = [split for split in SPLITS if split != "4 x 2"]
BEGUN = "2 x 4"
RESUMED = [
    ("1 x 8", 1),
    ("1 x 8", 3),
    ("1 x 2, 4 times", 2),
    ("2 x 2, twice", 4),
    ("4 x 2", 2),
]
"""Splits that go on with the run of two processes, and the step that they go on from: 3 is the end of an epoch."""
EPOCHS = 2
"""Of three steps: 20 prompts, of which a step takes 6 or 7, so that ranks have batches of different sizes."""


class Drawn(L.Callback):
    """The samples of every batch, by step and prompt; those of validation by prompt."""

    def __init__(self) -> None:
        self.seen: dict[str, list[list[int]]] = {}

    def _take(self, step: str, outputs: Any) -> None:
        samples = outputs["samples"]
        for prompt, tokens_GKT, mask_GKT in zip(
            samples.prompts, samples.rollout.tokens_BGKT, samples.rollout.mask_BGKT, strict=True
        ):
            self.seen[f"{step} {prompt}"] = [
                row[kept].tolist() for row, kept in zip(tokens_GKT[:, 0], mask_GKT[:, 0], strict=True)
            ]

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self._take(str(self.step), outputs)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self._take(f"validation {trainer.global_step}", outputs)


def fit(split: str, folder: str, root: Path, after: int = 0) -> dict[str, Any]:
    """Two epochs of three steps, each with a validation, or what is left of them after some steps on two processes."""
    strategy = "fsdp2" if "shards" in split else "ddp"
    callbacks = [every_step(root)] if split == BEGUN and not after else []
    return fitted(SPLITS[split], folder, root, after, callbacks, strategy)


def fitted(
    split: tuple[int, int, int], folder: str, root: Path, after: int, callbacks: list[Any], strategy: str = "ddp"
) -> dict[str, Any]:
    world, batch_size, accumulate = split
    module = student_of(
        folder,
        losses={
            "kl": ReverseKL(),
            "diversity": PolicyGradient(PairwiseDiversity(NGramCounts()), weight=0.5),
            "even": PolicyGradient(Even()),
        },
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.5),
        redraw=2,
        seed=3,
    )
    data = PromptData(
        str(root / "train.txt"), str(root / "validation.txt"), batch_size=batch_size, validation_batch_size=8 // world
    )
    drawn = Drawn()
    several = {"devices": world, "strategy": strategy} if world > 1 else {}
    ckpt = str(root / "saved" / f"step={after}.ckpt") if after else None
    with warnings.catch_warnings(), patch("cfg_distill.callbacks.exact_resume.rank_zero_info") as said:
        warnings.simplefilter("ignore")
        every = [drawn, ExactResume(), *callbacks]
        run = trainer(every, root, max_epochs=EPOCHS, accumulate_grad_batches=accumulate, **several)
        run.fit(module, datamodule=data, ckpt_path=ckpt)
    lines = [call.args[0] for call in said.call_args_list]
    return {"weights": snapshot(module), "drawn": drawn.seen, "steps": run.global_step, "said": lines}


def work(rank: int, world: int, folder: str, root: str) -> None:
    """One of some processes, for all splits over as many."""
    found = {split: fit(split, folder, Path(root)) for split in UNBROKEN if SPLITS[split][0] == world}
    for split, after in RESUMED:
        if SPLITS[split][0] == world:
            found[f"{split} after {after}"] = fit(split, folder, Path(root), after)
    torch.save(found, f"{root}/{world}-{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every process of every split found."""
    root = tmp_path_factory.mktemp("any")
    words = [f"w{a} w{b}" for a in range(4) for b in range(7)]
    (root / "train.txt").write_text("\n".join(words[:20]))
    (root / "validation.txt").write_text("\n".join(words[20:]))
    folder = tiny_folder(root / "model")
    for world in (2, 4):
        in_ranks(work, world, folder, str(root), number=world)
    every = [torch.load(root / f"{world}-{rank}.pt", weights_only=True) for world in (2, 4) for rank in range(world)]
    each: dict[str, list[dict[str, Any]]] = {name: [] for rank in every for name in rank}
    for rank in every:
        for name, result in rank.items():
            each[name].append(result)
    each |= {split: [fit(split, folder, root)] for split, (world, *_) in SPLITS.items() if world == 1}
    for split, after in RESUMED:
        if SPLITS[split][0] == 1:
            each[f"{split} after {after}"] = [fit(split, folder, root, after)]
    each["1 x 4 after 2"] = [fitted((1, 4, 1), folder, root, 2, [])]
    return each


@pytest.mark.parametrize("split", UNBROKEN)
def test_every_split_draws_the_same_samples(found: dict[str, list[dict[str, Any]]], split: str) -> None:
    whole = found["1 x 8"][0]["drawn"]
    assert len(whole) == 20 * EPOCHS + 8 * EPOCHS
    assert together(found[split]) == whole
    assert [rank["steps"] for rank in found[split]] == [3 * EPOCHS] * len(found[split])
    assert all(not rank["said"] for rank in found[split])


def together(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The samples of all ranks."""
    drawn: dict[str, Any] = {}
    for rank in ranks:
        assert not drawn.keys() & rank["drawn"].keys(), "a prompt on two ranks"
        drawn |= rank["drawn"]
    return drawn


@pytest.mark.parametrize("name", [*UNBROKEN, *(f"{split} after {after}" for split, after in RESUMED)])
def test_every_split_ends_with_the_same_weights(found: dict[str, list[dict[str, Any]]], name: str) -> None:
    whole = found["1 x 8"][0]["weights"]
    for rank in found[name]:
        for part, weight in rank["weights"].items():
            torch.testing.assert_close(weight, whole[part], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("split", "after"), RESUMED)
def test_a_run_of_two_processes_goes_on_on_any_number(
    found: dict[str, list[dict[str, Any]]], split: str, after: int
) -> None:
    whole, ranks = found["1 x 8"][0]["drawn"], found[f"{split} after {after}"]
    done = {str(step) for step in range(after)}
    drawn = {name: group for name, group in together(ranks).items() if not name.startswith("validation 3")}
    assert drawn == {
        name: group
        for name, group in whole.items()
        if name.split()[0] not in done and not name.startswith("validation 3")
    }
    assert [rank["steps"] for rank in ranks] == [3 * EPOCHS] * len(ranks)
    said = {line for rank in ranks for line in rank["said"]}
    if SPLITS[split][0] == 2:
        assert not said
    else:
        (line,) = said
        assert line.startswith(f"Going on with {SPLITS[split][0]} process") and "where 2 began. Kept: weights," in line
        assert "the prompts and the samples of every step. Not kept: the random states of dropout" in line


def test_with_fewer_prompts_per_step_no_prompt_of_the_epoch_is_lost(found: dict[str, list[dict[str, Any]]]) -> None:
    (run,), done = found["1 x 4 after 2"], found["1 x 8"][0]["drawn"]
    assert run["steps"] == 2 + 2 + 5  # 13 of 20 prompts are done: more than three steps of five
    first = {name.split(" ", 1)[1] for name in done if name[0] in "01"}
    assert first | {name.split(" ", 1)[1] for name in run["drawn"] if name[0] in "23"} == {
        name.split(" ", 1)[1] for name in done if name[0] in "012"
    }
    (line,) = run["said"]
    assert "Not kept: the prompts per step: an epoch has 5 steps, where it had 3; the random states" in line


def test_samples_differ_between_prompts_steps_and_siblings(found: dict[str, list[dict[str, Any]]]) -> None:
    drawn = found["1 x 8"][0]["drawn"]
    groups = [tuple(map(tuple, group)) for group in drawn.values()]
    assert len(set(groups)) == len(groups)
    assert sum(len(set(group)) for group in groups) > 0.9 * 3 * len(groups)
