"""Where the prompts of a batch stand among those of all devices."""

from __future__ import annotations

from typing import cast

import torch
from lightning import LightningModule
from torch import Tensor


class Places:
    """Counts prompts over ranks, and over the batches that one step accumulates.

    The rollouts of a step are keyed by these places. So a step draws the same samples however its prompts are dealt::

        one device     | 0 1 2 3 4 5 6 7 |
        two devices    | 0 1 2 3 |   | 4 5 6 7 |
        two devices that accumulate two batches
                       | 0 1 |   | 2 3 |     and then     | 4 5 |   | 6 7 |

    Ranks tell each other the sizes of their batches, one number per batch: any loader will do.

    Attributes:
        counted: the prompts of all ranks so far.
    """

    def __init__(self) -> None:
        self.counted = 0

    def of(self, module: LightningModule, size: int, begins: bool) -> range:
        """The places of the next batch of this rank.

        Args:
            module: one that is being trained or validated.
            size: the prompts of the batch.
            begins: whether counting begins anew with this batch.
        """
        own = torch.tensor(size, device=module.device)
        sizes_R = cast(Tensor, module.all_gather(own)).view(-1).tolist()
        first = (0 if begins else self.counted) + sum(sizes_R[: module.global_rank])
        self.counted = sum(sizes_R) + (0 if begins else self.counted)
        return range(first, first + size)
