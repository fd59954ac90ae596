"""Pseudo density: how crowded the place of a sample is among real outputs. Shapes: N vectors, M outputs of a bank, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts
from cfg_distill.generators import PromptLike
from cfg_distill.references.base import Reference
from cfg_distill.references.kernels import rows_at_once

_LEAST = 1e-6
"""A distance below which two outputs are one: k copies of it would have an infinite density."""


@dataclass(frozen=True)
class Bank:
    """The outputs of a reference that belong to a prompt.

    Attributes:
        vectors_MD: their vectors.
        density_M: the pseudo density of each among the others, of (weighted) mean 1.
        typical: the mean of 1 / distance, which is density 1.
        k: neighbours.
    """

    vectors_MD: Tensor
    density_M: Tensor
    typical: Tensor
    k: int


def neighbour_distances(vectors: Tensor, bank: Tensor, k: int, others: bool = False) -> Tensor:
    """Mean Euclidean distance to the k nearest vectors of a bank, ``[N, D]`` and ``[M, D]`` to ``[N]``, in blocks.

    Args:
        vectors: where from.
        bank: the neighbours.
        k: how many of them.
        others: whether ``vectors`` is the bank, and none is its own neighbour.
    """
    rows, means = rows_at_once(bank), []
    for block, part_ND in enumerate(vectors.split(rows)):  # no vector at all is one empty block
        # Differences, not a matrix product: the distance of a copy is 0.
        part_NM = torch.cdist(part_ND, bank, compute_mode="donot_use_mm_for_euclid_dist")
        if others:
            own_N = torch.arange(len(part_NM))
            part_NM[own_N, block * rows + own_N] = torch.inf
        means.append(part_NM.topk(k, largest=False).values.mean(-1))
    return torch.cat(means).clamp(min=_LEAST)


def bank_of(vectors: Tensor, weight: Tensor, k: int) -> Bank:
    r"""The outputs of a prompt and their densities.

    .. math:: \rho_j = \frac{1 / \bar d_j}{\sum_l w_l / \bar d_l}, \qquad
        \bar d_j = \text{mean distance to its k nearest others}

    Source: arXiv 2407.08659 and its code, where all weights are 1 / n.

    Args:
        vectors: ``[R, D]``.
        weight: ``[R]``, of sum 1; outputs of weight 0 are left out.
        k: neighbours.

    Raises:
        ValueError: fewer than k + 1 outputs have a weight.
    """
    kept_R = weight > 0
    vectors_MD, weight_M = vectors[kept_R].float(), weight[kept_R].float()
    if len(vectors_MD) < k + 1:
        raise ValueError(f"Expected at least {k + 1} reference outputs for {k} neighbours but got {len(vectors_MD)}.")
    inverse_M = 1 / neighbour_distances(vectors_MD, vectors_MD, k, others=True)
    typical = (weight_M * inverse_M).sum()
    return Bank(vectors_MD, inverse_M / typical, typical, k)


def pseudo_density(vectors: Tensor, bank: Bank) -> Tensor:
    """The density of each vector in a bank, ``[N, D]`` to ``[N]`` float32: 1 where it is as crowded as at a typical output.

    A copy of an output of the bank is its own nearest neighbour, so its density is higher than that of the output.

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [4.0, 4.0]])
        >>> pseudo_density(torch.tensor([[0.5, 0.5], [3.0, 3.0]]), bank_of(square, torch.full((5,), 0.2), k=2))
        tensor([1.6770, 0.5590])
    """
    return 1 / (neighbour_distances(vectors.float(), bank.vectors_MD, bank.k) * bank.typical)


class Banks:
    """The banks of prompts, made once each: prompts that choose the same outputs of one set share a bank.

    Args:
        reference: real outputs, at least k + 1 for each prompt.
        k: neighbours whose mean distance is 1 / density.
        quantile: of the densities of a bank, or None for none.
    """

    def __init__(self, reference: Reference, k: int, quantile: float | None = None) -> None:
        self.reference = reference
        self.k = k
        self.quantile = quantile
        self._known: dict[bytes | PromptLike, Bank] = {}

    def problems(self) -> list[Problem]:
        """What is wrong with the settings, as far as it is known without reading the reference."""
        found = problems_of_counts(k=self.k)
        if self.quantile is not None and not 0 < self.quantile < 1:
            found.append(Problem("quantile", f"expected a number between 0 and 1, but got {self.quantile}."))
        size = self.reference.size() if not self.reference.problems(Context(training=True)) else None
        if size is not None and self.k >= 1 and size < self.k + 1:
            text = f"expected at least {self.k + 1} reference outputs for {self.k} neighbours, but there are {size}."
            found.append(Problem("k", f"{text} Lower `@.k`, or add outputs."))
        return found

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        """Which prompts have fewer than k + 1 outputs."""
        found = self.reference.problems_of_prompts(prompts, self.k + 1)
        return [replace(each, text=f"{each.text} Or lower `k`, which needs {self.k} + 1.") for each in found]

    def of(self, prompts: Sequence[PromptLike], vectors: Tensor, weight: Tensor) -> list[Bank]:
        """The bank of each prompt, from all vectors, ``[R, D]``, and their weights, ``[B, R]``.

        Raises:
            ConfigError: fewer than k + 1 outputs belong to a prompt.
        """
        found = []
        for prompt, weight_R in zip(prompts, weight, strict=True):
            key = weight_R.cpu().numpy().tobytes() if self.reference.shared else prompt
            if key not in self._known or self._known[key].vectors_MD.device != vectors.device:
                try:
                    self._known[key] = bank_of(vectors, weight_R, self.k)
                except ValueError as error:
                    text = (
                        f"prompt {str(prompt)!r}: {str(error)[0].lower()}{str(error)[1:]} Lower `@.k`, or add outputs."
                    )
                    raise ConfigError(Problem("k", text)) from error
            found.append(self._known[key])
        return found
