"""NaN and infinity stop a fit before they reach the student, and never reach a checkpoint. Skipped: distillation/."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import FirstToken, batches, same, snapshot, student_of, trainer

from cfg_distill import CFGDistillation
from cfg_distill.callbacks import AtomicCheckpointIO
from cfg_distill.distillation.finite import gradient_norm
from cfg_distill.distillation.step import PATIENCE
from cfg_distill.errors import ConfigError
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards import GroupReward, PairwiseReward
from cfg_distill.sampling.samples import Samples


class BrokenOnce(PairwiseReward):
    """Whether first tokens differ; NaN in one batch. Its running mean reads every batch."""

    def __init__(self, at: int = -1) -> None:
        super().__init__(baseline="running_mean")
        self.at = at
        self.calls = 0

    def pairs(self, samples: Samples) -> torch.Tensor:
        first_BG = samples.rollout.tokens_BGKT[:, :, 0, 0]
        pairs_BGG = (first_BG[:, :, None] != first_BG[:, None]).float()
        self.calls += 1
        return pairs_BGG.fill_(torch.nan) if self.calls == self.at + 1 else pairs_BGG


def module_with(reward: Any, folder: str, **settings: Any) -> CFGDistillation:
    """It stops at the first bad step."""
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(reward, weight=0.5)}
    return student_of(folder, **({"losses": losses, "max_bad_steps": 0} | settings))


def saving(root: Path, every: int = 1) -> ModelCheckpoint:
    """As in every shipped recipe: one file, and one more attempt when the fit ends by an exception."""
    return ModelCheckpoint(
        root / "saved", save_top_k=0, save_last=True, every_n_train_steps=every, save_on_exception=True
    )


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_reward_that_breaks_once_stops_the_run_which_then_goes_on(
    tiny_model: str, tmp_path: Path, clip: float | None
) -> None:
    whole = module_with(BrokenOnce(), tiny_model)
    trainer([], tmp_path).fit(whole, batches(5))
    broken = module_with(BrokenOnce(at=5), tiny_model)
    # A checkpoint every third step: the one that the exception writes is newer.
    settings: dict[str, Any] = {"plugins": [AtomicCheckpointIO()], "gradient_clip_val": clip}
    with pytest.raises(
        ConfigError, match=r"Key `model.losses.diversity`: expected a finite loss, but got nan in step 5"
    ) as caught:
        trainer([saving(tmp_path, 3)], tmp_path, **settings).fit(broken, batches(8))
    assert [problem.path for problem in caught.value.problems] == ["model.losses.diversity"]
    assert all(tensor.isfinite().all() for tensor in snapshot(broken).values())
    if clip is None:
        assert same(snapshot(broken), snapshot(whole))
    last = tmp_path / "saved" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 5
    floating = [tensor for tensor in content["state_dict"].values() if tensor.is_floating_point()]
    assert all(tensor.isfinite().all() for tensor in floating)
    mended = module_with(BrokenOnce(), tiny_model)
    resumed = trainer([saving(tmp_path, 3)], tmp_path, **settings)
    resumed.fit(mended, batches(8), ckpt_path=str(last))
    assert resumed.global_step > 5
    assert all(tensor.isfinite().all() for tensor in mended.state_dict().values() if tensor.is_floating_point())


class Spoilt(L.Callback):
    """Puts a number where it does not belong, before the given step."""

    def __init__(self, value: float, step: int) -> None:
        self.value = value
        self.step = step

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            next(p for p in pl_module.student.parameters() if p.grad is not None).grad.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_though_each_loss_is(tiny_model: str, tmp_path: Path, value: float) -> None:
    module = student_of(tiny_model, max_bad_steps=0)
    after_two = student_of(tiny_model)
    trainer([], tmp_path).fit(after_two, batches(2))
    message = (
        r"The gradient of step 2 is NaN or infinite, though each loss is finite \(sums: `kl` .*Lower `model.optimizer"
    )
    with pytest.raises(ConfigError, match=message):
        trainer([Spoilt(value, 2)], tmp_path, accumulate_grad_batches=1).fit(module, batches(4))
    assert same(snapshot(module), snapshot(after_two))


def test_the_norm_is_that_of_all_gradients() -> None:
    one, other, unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad, other.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert gradient_norm([one, other, unused]) == 5


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_a_number_of_the_optimiser_that_spoils_every_weight(tiny_model: str, tmp_path: Path, key: str) -> None:
    settings = {"lr": 0.01} | {key: torch.inf}
    module = student_of(tiny_model, optimizer=lambda parameters: torch.optim.AdamW(parameters, **settings))
    said = {"lr": "Key `model.scheduler`: expected learning rates of at least 0, but it makes"}
    named = f"Key `model.optimizer.init_args.{key}`: expected a finite number, but got inf"
    with pytest.raises(ConfigError, match=said.get(key, named)):
        trainer([saving(tmp_path)], tmp_path).fit(module, batches(2))
    assert all(tensor.isfinite().all() for tensor in snapshot(module).values())


class Breaks(torch.optim.SGD):
    """An optimiser whose second step makes a weight infinite, as one with a huge rate would."""

    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2:
            self.param_groups[0]["params"][0].data.view(-1)[0] = torch.inf
        return found


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("every", [1, 10])
def test_a_spoilt_student_is_never_saved_over_a_checkpoint(tiny_model: str, tmp_path: Path, every: int) -> None:
    """Neither by a checkpoint that is due (every step) nor by the exception of the next rollout."""
    module = student_of(tiny_model, optimizer=lambda parameters: Breaks(parameters, lr=0.01))
    last = tmp_path / "saved" / "last.ckpt"
    good = trainer([saving(tmp_path)], tmp_path)
    good.fit(student_of(tiny_model), batches(1))
    before = last.read_bytes()
    again = saving(tmp_path, every)
    again.save_top_k, again.save_last, again.filename, again._enable_version_counter = 1, False, "last", False
    expected = "After 2 steps the student holds NaN or infinity" if every == 1 else "The model diverged"
    with pytest.raises(ConfigError, match=expected):
        trainer([again], tmp_path).fit(module, batches(4))
    content = torch.load(last, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())
    assert (last.read_bytes() == before) == (every == 10)


def test_a_bias_that_forbids_a_token_is_no_fault(tiny_model: str, tmp_path: Path) -> None:
    module = student_of(tiny_model)
    module.configure_model()
    module.trainer = cast(Any, SimpleNamespace(world_size=1, global_step=0))
    assert module.teacher is not None
    for model in (module.student, module.teacher):
        next(model.parameters()).data.view(-1)[0] = -torch.inf
    module.on_save_checkpoint({"state_dict": module.state_dict()})
    next(module.student.parameters()).data.view(-1)[1] = torch.nan
    with pytest.raises(ConfigError, match="holds NaN or infinity"):
        module.on_save_checkpoint({"state_dict": module.state_dict()})


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step..` before")
def test_a_scaler_may_skip_steps_but_not_for_ever(tiny_model: str, tmp_path: Path) -> None:
    """Under 16-mixed an overflow of the scaled gradient is the scaler's business, a loss that is NaN is not."""

    class Overflows(L.Callback):
        def __init__(self, steps: int) -> None:
            self.steps = steps
            self.seen = 0

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.seen += 1

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            if self.seen < self.steps:
                next(p for p in pl_module.student.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf

    def half() -> dict[str, Any]:  # Lightning's own 16-mixed is for accelerators
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}

    module = student_of(tiny_model)
    overflows = Overflows(3)
    fitted = trainer([overflows], tmp_path, **half())
    fitted.fit(module, batches(5))
    assert overflows.seen == 5
    start = student_of(tiny_model)
    start.configure_model()
    assert not same(snapshot(module), snapshot(start))
    module = student_of(tiny_model, max_bad_steps=0)
    with pytest.raises(ConfigError, match="The gradient of step"):
        trainer([Overflows(1000)], tmp_path, **half()).fit(module, batches(PATIENCE + 1))
    with pytest.raises(ConfigError, match="expected a finite loss, but got nan"):
        trainer([], tmp_path, **half()).fit(module_with(BrokenOnce(at=1), tiny_model), batches(4))


class Infinite(FirstToken):
    """An infinite reward."""

    def forward(self, samples: Samples) -> GroupReward:
        group = super().forward(samples)
        return GroupReward(group.reward_BG, group.advantage_BG * torch.inf)


def test_micro_batches_and_accumulation_name_the_loss_too(tiny_model: str, tmp_path: Path) -> None:
    module = module_with(Infinite(), tiny_model, micro_batch=3)
    with pytest.raises(ConfigError, match=r"Key `model.losses.diversity`: .* in step 0"):
        trainer([], tmp_path, accumulate_grad_batches=2).fit(module, batches(4))
