"""Bad steps: a loss, reward or gradient is NaN or infinite. They are skipped, counted and written down; too many stop the run.

Shapes: R ranks, L losses, B prompts, G samples per prompt.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from cfg_distill.distillation.finite import not_finite_terms, problems_of_gradient
from cfg_distill.errors import ConfigError

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation
    from cfg_distill.distillation.step import Batch

FOLDER = "bad_steps"
"""Within the folder of a run."""

MOST_FILES = 5
"""Of each rank in one folder: the first ones tell as much as all of them."""


class BadSteps:
    """The count of bad steps, the same on all ranks.

    Args:
        most: bad steps in a row that are skipped; one more stops the run.

    Attributes:
        total: of the run, over interruptions.
        in_a_row: the last ones, without a good step in between.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self.in_a_row = 0

    def meet(self, module: CFGDistillation, batches: Sequence[Batch]) -> None:
        """Count a bad step, write its samples down, and warn. All ranks call this in the same step.

        Raises:
            ConfigError: it is one too many.
        """
        self.total += 1
        self.in_a_row += 1
        names = list(module.losses)
        own_2L = torch.stack([_total(names, [each.sums for each in batches]), _rewards(names, batches)])
        every_R2L = cast(Tensor, module.all_gather(own_2L)).view(-1, *own_2L.shape)
        # Nobody's loss, but the gradient: then the samples of all ranks may be to blame.
        blamed_R = ~every_R2L.isfinite().flatten(1).all(1)
        blamed_R = blamed_R if blamed_R.any() else torch.ones_like(blamed_R)
        folder = (
            Path(module.trainer.log_dir or ".") / FOLDER
        )  # asked on all ranks: the first one's is sent to the others
        record = ""
        if blamed_R[module.global_rank]:
            record = _written(module, batches, folder)
        elif module.global_rank == 0:
            record = f" Prompts and samples: {folder / _name(module.global_step, int(blamed_R.int().argmax()))}."
        sums, rewards = (dict(zip(names, value_L, strict=True)) for value_L in every_R2L.sum(0))
        if self.in_a_row > self.most:
            if self.most:
                record = (
                    f" It is bad step number {self.in_a_row} in a row (`@/model.max_bad_steps`: {self.most}).{record}"
                )
            found = problems_of_gradient(sums, rewards, module.global_step, record)
            raise ConfigError([problem.under("model") for problem in found])
        if record:
            self._warn(module.global_step, sums, rewards, record)

    def _warn(self, step: int, sums: Mapping[str, Tensor], rewards: Mapping[str, Tensor], record: str) -> None:
        terms = not_finite_terms(sums, rewards)
        reason = " and ".join(f"the {what} of `{name}` is {float(value)}" for name, what, value in terms)
        warnings.warn(
            f"Step {step} is skipped, and no weight moves: {reason or 'the gradient is NaN or infinite'}.{record} The run stops"
            f" after more than {self.most} such steps in a row (`model.max_bad_steps`); this is number {self.in_a_row}.",
            stacklevel=2,
        )


def _total(names: Sequence[str], parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Sums by loss, added up, ``[L]`` float32."""
    return torch.stack([torch.stack([part[name].float() for part in parts]).sum() for name in names])


def _rewards(names: Sequence[str], batches: Sequence[Batch]) -> Tensor:
    """The sum of the rewards of each loss, ``[L]`` float32; 0 for a loss without one."""
    zero = torch.zeros((), device=batches[0].loss.device)
    sums = [
        {name: each.rewards[name].float().sum().to(zero) if name in each.rewards else zero for name in names}
        for each in batches
    ]
    return _total(names, sums)


# The file


def _name(step: int, rank: int) -> str:
    return f"step-{step:06d}-rank-{rank}.json"


def _written(module: CFGDistillation, batches: Sequence[Batch], folder: Path) -> str:
    """Write prompts and samples of this rank, and say where."""
    step, rank = module.global_step, module.global_rank
    file = folder / _name(step, rank)
    if len(list(folder.glob(f"step-*-rank-{rank}.json"))) >= MOST_FILES:
        return f" Prompts and samples are not written: {folder} holds {MOST_FILES} files of rank {rank} already."
    content = {
        "step": step,
        "rank": rank,
        "sums": [{name: _plain(value) for name, value in each.sums.items()} for each in batches],
        "samples": [row for each in batches for row in _rows(each)],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:  # no reason to end a run
        return f" Prompts and samples could not be written to {file}: {error.strerror}."
    return f" Prompts and samples: {file}."


def _rows(batch: Batch) -> Iterator[dict[str, Any]]:
    """What is known of each sample, as plain values."""
    samples = batch.samples
    rewards = {name: reward_BG.flatten().tolist() for name, reward_BG in batch.rewards.items()}
    advantages = {name: each.tolist() for name, each in batch.weights_of_samples().items()}
    tokens_NKT, mask_NKT = samples.rollout.tokens_NKT.tolist(), samples.rollout.mask_NKT.tolist()
    for number, output in enumerate(samples.outputs):
        row: dict[str, Any] = {"prompt": samples.prompts[number // samples.group]}
        if isinstance(output, str):
            row["text"] = output
        row["tokens"] = [
            [token for token, exists in zip(tokens_T, mask_T, strict=True) if exists]
            for tokens_T, mask_T in zip(tokens_NKT[number], mask_NKT[number], strict=True)
        ]
        row["reward"] = {name: _plain(values[number]) for name, values in rewards.items()}
        row["advantage"] = {name: _plain(values[number]) for name, values in advantages.items()}
        yield row


def _plain(value: Tensor | float) -> float | str:
    """A number; a word where JSON has none."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
