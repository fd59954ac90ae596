"""What a resumed run takes from its recipe, and what from the checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fits import FirstToken, batches, every_step, student_of, trainer

from cfg_distill.callbacks import BetaCalibration, ExactResume
from cfg_distill.callbacks.exact_resume import random_states
from cfg_distill.errors import ConfigError
from cfg_distill.losses import PolicyGradient, ReverseKL

# A resumed fit here does without the ModelCheckpoint of the first.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]
Schedule = torch.optim.lr_scheduler


def student(
    folder: str,
    lr: float = 0.1,
    beta: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    optimizer: Callable[..., Any] = torch.optim.AdamW,
    length: int = 8,
) -> Any:
    def falling(optimizer: Any) -> Any:
        parts = [Schedule.LinearLR(optimizer, 1.0, 0.0, total_iters=length), Schedule.ConstantLR(optimizer, factor=1.0)]
        return Schedule.SequentialLR(optimizer, parts, milestones=[100])

    settings = {"betas": betas} if optimizer is torch.optim.AdamW else {}
    return student_of(
        folder,
        losses={"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=beta)},
        optimizer=lambda parameters: optimizer(parameters, lr=lr, **settings),
        scheduler=falling,
    )


@pytest.fixture(scope="module")
def saved(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after four of eight steps: half of the learning rate is left, and beta was calibrated."""
    root = tmp_path_factory.mktemp("run")
    trainer([every_step(root), BetaCalibration(num_steps=2)], max_steps=4).fit(student(tiny_model), batches(9))
    return root / "saved" / "step=4.ckpt"


def resumed(tiny_model: str, saved: Path, steps: int = 4, **changes: Any) -> tuple[Any, dict[str, Any], float]:
    """The module, the optimiser's settings and the loss's weight after going on for a number of steps."""
    module = student(tiny_model, **changes)
    fitted = trainer([], max_steps=4 + steps)
    fitted.fit(module, batches(9), ckpt_path=saved)
    return module, fitted.optimizers[0].param_groups[0], float(module.losses["diversity"].weight)


def test_what_did_not_change_goes_on_from_where_it_stood(tiny_model: str, saved: Path) -> None:
    calibrated = float(torch.load(saved, weights_only=True)["state_dict"]["losses.diversity.weight"])
    _, group, beta = resumed(tiny_model, saved, steps=1)
    assert group["lr"] == pytest.approx(0.1 * 3 / 8)
    assert beta == calibrated != pytest.approx(0.1)


def test_what_the_recipe_changed_is_what_it_says(tiny_model: str, saved: Path) -> None:
    _, group, beta = resumed(tiny_model, saved, steps=2, lr=0.4, beta=9.0, betas=(0.5, 0.999))
    assert group["lr"] == pytest.approx(0.4 * 2 / 8)
    assert group["betas"] == (0.5, 0.999)
    assert beta == 9.0


def test_a_changed_number_may_be_changed_back(tiny_model: str, saved: Path, tmp_path: Path) -> None:
    fitted = trainer([every_step(tmp_path)], max_steps=5)
    fitted.fit(student(tiny_model, lr=0.4, beta=9.0), batches(9), ckpt_path=saved)
    _, group, beta = resumed(tiny_model, tmp_path / "saved" / "step=5.ckpt", steps=2)
    assert group["lr"] == pytest.approx(0.1 * 2 / 8)
    assert beta == pytest.approx(0.1)


def test_a_changed_schedule_is_said_to_change_nothing(tiny_model: str, saved: Path) -> None:
    with pytest.warns(UserWarning, match=r"Key `model.scheduler`: changed since the checkpoint"):
        _, group, _ = resumed(tiny_model, saved, steps=1, length=100)
    assert group["lr"] == pytest.approx(0.1 * 3 / 8)


@pytest.mark.parametrize("had_it", [False, True])
@pytest.mark.parametrize("has_it", [False, True])
def test_another_number_of_processes_is_told_where_no_callback_tells_it(
    tiny_model: str, saved: Path, tmp_path: Path, had_it: bool, has_it: bool
) -> None:
    content = torch.load(saved, weights_only=True)
    assert content["configured"]["processes"] == 1
    content["configured"]["processes"] = 2
    if had_it:
        content["callbacks"]["ExactResume"] = {"processes": [random_states()] * 2}
    torch.save(content, tmp_path / "two.ckpt")
    again = trainer([ExactResume()] if has_it else [], max_steps=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.fit(student(tiny_model), batches(9), ckpt_path=tmp_path / "two.ckpt")
        again.validate(student(tiny_model), batches(1), ckpt_path=tmp_path / "two.ckpt", verbose=False)
    said = [str(each.message) for each in caught if "where 2 began" in str(each.message)]
    assert len(said) == (0 if had_it and has_it else 1)
    assert all(
        each.startswith("Going on with 1 process, ") and "`cfg_distill.callbacks.ExactResume`" in each for each in said
    )


def test_another_optimiser_cannot_go_on(tiny_model: str, saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"`model.optimizer`: expected AdamW, .* but got SGD"):
        resumed(tiny_model, saved, optimizer=torch.optim.SGD)
