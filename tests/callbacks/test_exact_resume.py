"""ExactResume: a run stopped anywhere and resumed takes the steps of an unbroken one."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tiny import tiny_folder
from tiny_fits import (
    batches,
    every_step,
    noisy_run,
    noisy_student,
    same,
    seed_everything,
    snapshot,
    student_of,
    trainer,
)

from cfg_distill.callbacks import BetaCalibration, ExactResume, StudentEMA
from cfg_distill.callbacks.exact_resume import _said, random_states, set_random_states
from cfg_distill.data import PromptData
from cfg_distill.files.logs import scalars_of

# A resumed fit here does without the ModelCheckpoint of the first.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


def test_resumed_at_any_step_the_weights_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    ratio = {"num_steps": 3, "ratio": 0.3}
    seed_everything(1)
    unbroken_ema = StudentEMA(decay=0.9)
    callbacks = [ExactResume(), unbroken_ema, BetaCalibration(**ratio), every_step(tmp_path)]
    unbroken, drawn = noisy_run(folder, tmp_path, callbacks)
    assert len(drawn) == 6
    for step in (1, 2, 3, 4, 5):
        seed_everything(99)
        ema = StudentEMA(decay=0.9)
        ckpt = tmp_path / "saved" / f"step={step}.ckpt"
        resumed, again = noisy_run(folder, tmp_path, [ExactResume(), ema, BetaCalibration(**ratio)], ckpt=ckpt)
        assert again == drawn[step:], step
        assert same(snapshot(resumed), snapshot(unbroken)), step
        assert same(ema.averages(resumed), unbroken_ema.averages(unbroken)), step
        assert torch.equal(resumed.losses["diversity"].weight, unbroken.losses["diversity"].weight)

    seed_everything(99)
    other, without = noisy_run(folder, tmp_path, [], ckpt=tmp_path / "saved" / "step=2.ckpt")
    assert without != drawn[2:]
    assert not same(snapshot(other), snapshot(unbroken))


class Drawing(Callback):
    """Draws at both ends of each batch."""

    def __init__(self) -> None:
        self.drawn: list[list[float]] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.drawn.append([torch.rand(()).item()])

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.drawn[-1].append(torch.rand(()).item())


def test_what_other_callbacks_draw_is_restored_wherever_they_stand(tmp_path: Path) -> None:
    folder, unbroken, resumed = tiny_folder(tmp_path / "model"), [Drawing(), Drawing()], [Drawing(), Drawing()]
    seed_everything(1)
    noisy_run(folder, tmp_path, [unbroken[0], ExactResume(), unbroken[1], every_step(tmp_path)])
    seed_everything(99)
    ckpt = tmp_path / "saved" / "step=2.ckpt"
    noisy_run(folder, tmp_path, [resumed[0], ExactResume(), resumed[1]], ckpt=ckpt)
    assert [each.drawn for each in resumed] == [each.drawn[2:] for each in unbroken]


@pytest.mark.parametrize(("before", "after"), [(2, 1.0), (1.0, 2), (2, 2)])
def test_another_limit_of_batches_skips_no_prompt(tmp_path: Path, before: float, after: float) -> None:
    """Of three batches in an epoch; stopped behind the first one."""
    folder, seen = tiny_folder(tmp_path / "model"), list[tuple[int, list[str]]]()

    class Seen(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append((trainer.current_epoch, list(batch)))

    noisy_run(folder, tmp_path, [ExactResume(), Seen(), every_step(tmp_path)], limit_train_batches=before, max_steps=1)
    settings = {"limit_train_batches": after, "ckpt": tmp_path / "saved" / "step=1.ckpt"}
    noisy_run(folder, tmp_path, [ExactResume(), Seen()], **settings)
    per_epoch = after if isinstance(after, int) else 3
    assert [epoch for epoch, _ in seen] == [0] * per_epoch + [1] * per_epoch
    first = [prompt for epoch, batch in seen for prompt in batch if epoch == 0]
    assert len(set(first)) == len(first) == 2 * per_epoch


def test_states_go_round_and_load_with_weights_only(tmp_path: Path) -> None:
    seed_everything(5)
    random.gauss(0, 1)
    np.random.randn()
    torch.save(random_states(), tmp_path / "states.pt")

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.randn(()).item()]

    expected = draw()
    seed_everything(6)
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert draw() == expected


class OwnData(L.LightningDataModule):
    """A user's own data, whose loader deals anew."""


def test_another_number_of_processes_is_said(tmp_path: Path) -> None:
    callback = ExactResume()
    callback.load_state_dict({"processes": [random_states(), random_states()]})
    with patch("cfg_distill.callbacks.exact_resume.rank_zero_info") as said:
        callback.on_train_start(trainer([callback]), noisy_student(tiny_folder(tmp_path / "model"))[0])
    assert said.call_args.args[0].startswith("Going on with 1 process, where 2 began. Kept: weights,")


@pytest.mark.parametrize(
    ("data", "kept", "lost"),
    [
        (PromptData("prompts.txt"), ["the place in the epoch", "the prompts and the samples of every step"], []),
        (OwnData(), [], ["the place in the epoch and the prompts of a step, which `OwnData` does not carry over"]),
    ],
)
def test_what_data_do_not_carry_over_is_not_called_kept(data: Any, kept: list[str], lost: list[str]) -> None:
    said = _said(2, (3, 1), (3, 1), SimpleNamespace(world_size=1, datamodule=data))
    first, _, second = said.partition("Not kept: ")
    assert all(each in first for each in kept) and all(each in second for each in lost)
    assert ("place in the epoch" in first) == bool(kept) and ("place in the epoch" in second) == bool(lost)


def test_validation_leaves_the_generators_as_it_found_them(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    drawn = []
    for interval in (1, 3):
        seed_everything(1)
        drawn.append(noisy_run(folder, tmp_path, [ExactResume()], val_check_interval=interval)[1])
    assert drawn[0] == drawn[1]


class Killed(Exception):
    """Between a checkpoint and the log of its step."""


def test_a_run_that_ends_between_a_checkpoint_and_its_log_leaves_no_gap(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")

    def curve() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for name, step, _ in scalars_of(tmp_path / "log"):
            found.setdefault(name, set()).add(step)
        return found

    def fit(ckpt: Path | None, ends_at: int) -> None:
        module, _ = noisy_student(folder)

        def on_train_batch_end(*_: object) -> None:  # Lightning calls it behind all callbacks
            if module.global_step == ends_at:
                raise Killed

        module.on_train_batch_end = on_train_batch_end
        logger = TensorBoardLogger(tmp_path, name="", version="log")
        callbacks = [ExactResume()] if ckpt else [ExactResume(), every_step(tmp_path)]
        trainer(callbacks, tmp_path, logger=logger, max_steps=6).fit(module, batches(6), ckpt_path=ckpt)

    with pytest.raises(Killed):
        fit(None, ends_at=3)
    assert curve()["train/loss"] == {0, 1}
    fit(tmp_path / "saved" / "step=3.ckpt", ends_at=0)
    assert {name: steps for name, steps in curve().items() if 2 not in steps} == {}
    assert curve()["train/loss"] == set(range(6))


def test_a_row_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("loss,step\n1.5,3\n1.25")
    assert list(scalars_of(tmp_path)) == [("loss", 3, 1.5)]


def test_a_validation_that_is_made_up_saves_what_the_recipe_now_says(tmp_path: Path) -> None:
    """It comes before Lightning asks the module to take a changed learning rate, and a checkpoint of it may be gone on from."""
    folder = tiny_folder(tmp_path / "model")

    def fit(lr: float, ckpt: Path | None, *more: Any) -> None:
        module = student_of(folder, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr))
        run = trainer([ExactResume(), *more], tmp_path, max_steps=4, val_check_interval=2)
        run.fit(module, batches(4), batches(1), ckpt_path=ckpt)

    class Save(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"val {trainer.global_step}.ckpt")

    fit(0.01, None, every_step(tmp_path))
    fit(0.05, tmp_path / "saved" / "step=2.ckpt", Save())
    saved = torch.load(tmp_path / "val 2.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
