"""ExactResume: a run stopped anywhere and resumed takes the steps of an unbroken one."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import tiny_folder
from tiny_fits import PROMPTS, FirstToken, same, snapshot, student_of, trainer

from cfg_distill.callbacks import BetaCalibration, ExactResume, StudentEMA
from cfg_distill.callbacks.exact_resume import random_states, set_random_states
from cfg_distill.data import PromptData
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards.base import GroupReward
from cfg_distill.samples import Samples


class Noisy(FirstToken):
    """A reward that draws from every global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, samples: Samples) -> GroupReward:
        group = super().forward(samples)
        self.drawn.append(random.random() + np.random.rand() + torch.rand(()).item())
        return GroupReward(group.reward_BG, group.advantage_BG * self.drawn[-1])


def noisy_student(folder: str) -> tuple[Any, list[float]]:
    reward = Noisy()
    return student_of(folder, losses={"kl": ReverseKL(), "diversity": PolicyGradient(reward, weight=0.1)}), reward.drawn


def prompts(folder: Path) -> PromptData:
    (folder / "train.txt").write_text("\n".join(PROMPTS[:6]))
    (folder / "validation.txt").write_text("\n".join(PROMPTS[6:]))
    return PromptData(str(folder / "train.txt"), str(folder / "validation.txt"), batch_size=2)


def run(
    folder: str, root: Path, callbacks: list[Any], ckpt: Path | None = None, **settings: Any
) -> tuple[Any, list[float]]:
    """Two epochs of three batches, with a validation in the middle of each."""
    module, drawn = noisy_student(folder)
    defaults: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 2}
    fitted = trainer(callbacks, root=root, **(defaults | settings))
    fitted.fit(module, datamodule=prompts(root), ckpt_path=None if ckpt is None else str(ckpt))
    return module, drawn


def every_step(root: Path) -> ModelCheckpoint:
    return ModelCheckpoint(root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_resumed_at_any_step_the_weights_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    ratio = {"num_steps": 3, "ratio": 0.3}
    seed_everything(1)
    unbroken_ema = StudentEMA(decay=0.9)
    callbacks = [ExactResume(), unbroken_ema, BetaCalibration(**ratio), every_step(tmp_path)]
    unbroken, drawn = run(folder, tmp_path, callbacks)
    assert len(drawn) == 6
    for step in (1, 2, 3, 4, 5):
        seed_everything(99)
        ema = StudentEMA(decay=0.9)
        ckpt = tmp_path / "saved" / f"step={step}.ckpt"
        resumed, again = run(folder, tmp_path, [ExactResume(), ema, BetaCalibration(**ratio)], ckpt=ckpt)
        assert again == drawn[step:], step
        assert same(snapshot(resumed), snapshot(unbroken)), step
        assert same(ema.averages(resumed), unbroken_ema.averages(unbroken)), step
        assert torch.equal(resumed.losses["diversity"].weight, unbroken.losses["diversity"].weight)

    seed_everything(99)
    other, without = run(folder, tmp_path, [], ckpt=tmp_path / "saved" / "step=2.ckpt")
    assert without != drawn[2:]
    assert not same(snapshot(other), snapshot(unbroken))


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


def test_another_number_of_processes_is_said(tmp_path: Path) -> None:
    callback = ExactResume()
    callback.load_state_dict({"processes": [random_states(), random_states()]})
    with pytest.warns(UserWarning, match="random states of 2 processes, this run has 1"):
        trainer([callback], max_steps=1).fit(noisy_student(tiny_folder(tmp_path / "model"))[0], prompts_loader())


def prompts_loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader([PROMPTS[:2]], batch_size=None)


def run_as_rank(rank: int, folder: str, root: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "RANK": str(rank),
                   "NODE_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    torch.set_num_threads(1)
    two = {"devices": 2, "strategy": "ddp", "max_epochs": 1}
    seed_everything(rank)
    unbroken, drawn = run(folder, Path(root), [ExactResume(), every_step(Path(root))], **two)
    seed_everything(99)
    resumed, again = run(folder, Path(root), [ExactResume()], ckpt=Path(root) / "saved" / "step=1.ckpt", **two)
    torch.save(
        {"drawn": drawn, "again": again, "same": same(snapshot(unbroken), snapshot(resumed))}, f"{root}/{rank}.pt"
    )


def test_each_process_gets_its_own_state_back(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_as_rank, (folder, str(tmp_path), port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["drawn"] != second["drawn"]
    for rank in (first, second):
        assert rank["again"] == rank["drawn"][1:]
        assert rank["same"]
