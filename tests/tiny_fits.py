"""Short fits of a tiny student, for the tests of callbacks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader

from cfg_distill import CFGDistillation
from cfg_distill.checkpoints.shards import whole
from cfg_distill.data import PromptData
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.metrics import SampleMetric
from cfg_distill.rewards.base import GroupReward, Reward
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples

PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7", "w8 w9", "w10", "w11", "w0 w1"]


class FirstToken(Reward):
    """A reward of each sample's own first token, against the mean of its siblings."""

    def forward(self, samples: Samples) -> GroupReward:
        reward_BG = samples.rollout.tokens_BGKT[:, :, 0, 0].float()
        siblings_BG = (reward_BG.sum(-1, keepdim=True) - reward_BG) / (samples.group - 1)
        return GroupReward(reward_BG, reward_BG - siblings_BG)


class Even(Reward):
    """Samples that begin with an odd token are degenerate, and may be drawn again. The reward itself is 0."""

    def forward(self, samples: Samples) -> GroupReward:
        zeros_BG = torch.zeros(len(samples.prompts), samples.group)
        return GroupReward(zeros_BG, zeros_BG)

    def degenerate(self, samples: Samples) -> torch.Tensor:
        return samples.rollout.tokens_BGKT[:, :, 0, 0] % 2 == 1


class DistinctFirst(SampleMetric):
    """The share of different first tokens in a group."""

    axis = "diversity"

    def score(self, samples: Samples) -> torch.Tensor:
        first_BG = samples.rollout.tokens_BGKT[:, :, 0, 0]
        return torch.tensor([len(set(row)) / len(row) for row in first_BG.tolist()])


class MeanLength(SampleMetric):
    """The mean length of a group."""

    axis = "quality"

    def score(self, samples: Samples) -> torch.Tensor:
        return samples.rollout.mask_BGKT[:, :, 0].sum(-1).float().mean(-1)


class EverySoMany(torch.utils.data.Dataset):
    """``number`` batches of two prompts."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> list[str]:
        return [PROMPTS[2 * index % 8], PROMPTS[(2 * index + 1) % 8]]


def batches(number: int) -> StatefulDataLoader:
    """A loader that goes on in the middle of an epoch."""
    return StatefulDataLoader(EverySoMany(number), batch_size=None)


def student_of(folder: str, kind: type[CFGDistillation] = CFGDistillation, **settings: Any) -> CFGDistillation:
    """A module whose weights move visibly in a step."""
    defaults: dict[str, Any] = {
        "generator": CausalLM(folder),
        "guidance": Guidance(2.0),
        "sampling": Sampling(samples=3, max_new_tokens=8),
        "losses": {"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=0.1)},
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        "measure_gradients_every": 0,
    }
    return kind(**(defaults | settings))


def trainer(callbacks: list[Any], root: Path | None = None, **settings: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "num_sanity_val_steps": 0, "max_epochs": 1, "default_root_dir": root, "log_every_n_steps": 1,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    }  # fmt: skip
    return L.Trainer(callbacks=callbacks, **(defaults | settings))


def fitted(module: CFGDistillation, prompts: list[str], place: Path) -> list[float]:
    """Fit a module by forty steps of the same prompts, and write ``last.ckpt`` into a folder. Returns the KL of each step."""
    kls: list[float] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            kls.append(float(trainer.callback_metrics["train/kl"]))

    fit = trainer([Note()], place)
    fit.fit(module, torch.utils.data.DataLoader([prompts] * 40, batch_size=None))  # type: ignore[arg-type]
    fit.save_checkpoint(place / "last.ckpt")
    return kls


def snapshot(module: CFGDistillation) -> dict[str, torch.Tensor]:
    """The student's weights, as a checkpoint names them."""
    named = module.student.named_parameters()
    return {f"student.{name}": whole(tensor.detach()).clone() for name, tensor in named}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Recorder(L.Callback):
    """The student's weights after each optimiser step, and as each validation begins, runs and ends."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.validated: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append(snapshot(pl_module))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.validated.append(snapshot(pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.after.append(snapshot(pl_module))


# Fits that depend on every random number generator


class Noisy(FirstToken):
    """A reward that draws from every global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, samples: Samples) -> GroupReward:
        group = super().forward(samples)
        self.drawn.append(random.random() + np.random.rand() + torch.rand(()).item())
        return GroupReward(group.reward_BG, group.advantage_BG * self.drawn[-1])


class Restless(L.Callback):
    """Draws from every global generator while validating."""

    def on_validation_batch_end(self, *arguments: Any) -> None:
        _ = random.random() + np.random.rand() + torch.rand(()).item()


def noisy_student(folder: str) -> tuple[Any, list[float]]:
    reward = Noisy()
    return student_of(folder, losses={"kl": ReverseKL(), "diversity": PolicyGradient(reward, weight=0.1)}), reward.drawn


def prompt_data(folder: Path) -> PromptData:
    (folder / "train.txt").write_text("\n".join(PROMPTS[:6]))
    (folder / "validation.txt").write_text("\n".join(PROMPTS[6:]))
    return PromptData(str(folder / "train.txt"), str(folder / "validation.txt"), batch_size=2)


def noisy_run(
    folder: str, root: Path, callbacks: list[Any], ckpt: Path | None = None, **settings: Any
) -> tuple[Any, list[float]]:
    """Two epochs of three batches, with a validation in the middle of each."""
    module, drawn = noisy_student(folder)
    defaults: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 2}
    fitted = trainer([*callbacks, Restless()], root=root, **(defaults | settings))
    fitted.fit(module, datamodule=prompt_data(root), ckpt_path=None if ckpt is None else str(ckpt))
    return module, drawn


def every_step(root: Path) -> ModelCheckpoint:
    return ModelCheckpoint(root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
