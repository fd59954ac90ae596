"""Training CSM: it learns the guidance, and two processes are one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from forked import in_ranks
from tiny_csm import tiny_csm

from cfg_distill import CFGDistillation
from cfg_distill.generators import CSM, Guidance
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards.base import GroupReward, Reward
from cfg_distill.sampling import Rollout, Sampling, Seeds, rollout
from cfg_distill.sampling.samples import Samples

PROMPTS = ["Hi there.", "[1]A longer text of the other speaker", "Well?", "Yes"]


class Length(Reward):
    """Short clips, against the mean of their siblings."""

    def forward(self, samples: Samples) -> GroupReward:
        reward_BG = -samples.rollout.mask_BGKT[:, :, 0].sum(-1).float()
        siblings_BG = (reward_BG.sum(-1, keepdim=True) - reward_BG) / (samples.group - 1)
        return GroupReward(reward_BG, reward_BG - siblings_BG)


class PerPrompt(CFGDistillation):
    """Each prompt's group depends on the prompt alone: the same samples however prompts are batched."""

    def rollout(self, prompts: Sequence[Any], seed: int | Seeds = 0) -> Rollout:
        groups = [rollout(self.student, [each], self.sampling, seed=PROMPTS.index(each)) for each in prompts]
        longest = max(group.tokens_BGKT.shape[-1] for group in groups)
        rows = {
            name: torch.cat([_padded(getattr(group, name), longest) for group in groups])
            for name in ("tokens_BGKT", "mask_BGKT", "log_probs_BGKT")
        }
        return Rollout(**rows)


def _padded(values_BGKT: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(values_BGKT, (0, length - values_BGKT.shape[-1]))


def fit(module: CFGDistillation, batches: list[list[str]], **settings: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, **settings,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


@pytest.mark.slow
def test_a_short_training_overfits_a_tiny_set(tmp_path: Path) -> None:
    """The divergence falls by ten, and the unguided student draws what the guided teacher draws."""
    num_steps, rate, guidance = 40, 0.005, Guidance(3.0)
    module = CFGDistillation(
        CSM(tiny_csm(tmp_path / "model", codes=4, books=2, end=6, sharpness=2.0)),
        {"kl": ReverseKL()},
        guidance,
        Sampling(16, 2),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=num_steps + 1),
        measure_gradients_every=0,
    )
    kls: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            kls.append(float(trainer.callback_metrics["train/kl_per_token"]))

    fit(module, [PROMPTS[:3]] * num_steps, callbacks=[Record()])
    greedy = Sampling(1, 2, temperature=0)
    student, start, teacher = (
        rollout(generator, PROMPTS[:3], greedy, guided)
        for generator, guided in ((module.student, None), (module.teacher, None), (module.teacher, guidance))
    )
    agreement, before = (
        float((other.tokens_BGKT == teacher.tokens_BGKT)[teacher.mask_BGKT].float().mean())
        for other in (student, start)
    )
    assert sum(kls[-5:]) < 0.1 * sum(kls[:5])
    assert before < 0.6
    assert agreement > 0.9


def of_two_processes(path: str, **settings: Any) -> PerPrompt:
    return PerPrompt(
        CSM(path),
        {"kl": ReverseKL(score_term=True), "length": PolicyGradient(Length(), weight=0.1)},
        Guidance(3.0),
        Sampling(3, 5),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02),
        **settings,
    )


def weights(module: CFGDistillation) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.student.parameters()])


def train_as_rank(rank: int, path: str, out: str) -> None:
    module = of_two_processes(path, micro_batch=3, measure_gradients_every=1)
    fit(module, [PROMPTS[rank::2]] * 2, devices=2, strategy="ddp", use_distributed_sampler=False)
    torch.save(weights(module), Path(out) / f"rank{rank}.pt")


@pytest.mark.slow  # MusicGen takes the same way: test_musicgen_training.py
def test_two_processes_are_one(tmp_path: Path) -> None:
    path = tiny_csm(tmp_path / "model")
    whole = of_two_processes(path, measure_gradients_every=0)
    whole.configure_model()
    start = weights(whole)
    fit(whole, [PROMPTS] * 2)
    in_ranks(train_as_rank, path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, weights(whole), rtol=1e-4, atol=1e-5)
    assert (first - start).abs().max() > 0.01
