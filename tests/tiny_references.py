"""References of a few rows of a table, for the tests of rewards that compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cfg_distill.references import Reference


class Rows(Reference):
    """Outputs are rows of the table of a Lookup; each prompt has the weights of its last word, a number."""

    def __init__(self, rows: Sequence[int], weights: Sequence[Sequence[float]] = ()) -> None:
        self.rows = list(rows)
        self.weights = weights

    def size(self) -> int:
        return len(self.rows)

    def parts(self) -> Iterator[list[int]]:
        yield self.rows[:2]
        yield self.rows[2:]

    def weight(self, prompts: Sequence[str]) -> Tensor:
        if not self.weights:
            return super().weight(prompts)
        return torch.tensor([self.weights[int(prompt.split()[-1]) % len(self.weights)] for prompt in prompts])


def with_bank(table_VD: Tensor, bank_RD: Tensor) -> tuple[Tensor, range]:
    """One table of outcomes and reference, and the rows of the reference."""
    return torch.cat([table_VD, bank_RD]), range(len(table_VD), len(table_VD) + len(bank_RD))
