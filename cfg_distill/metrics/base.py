"""The base of every metric over groups of samples: one value a prompt, so that intervals over prompts can be taken."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal, Self

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cfg_distill.samples import Samples


class SampleMetric(Metric):
    """One value a prompt, kept until the end.

    Attributes:
        axis: which axis of the front the metric belongs to; ``guard`` metrics show a failure and lie on neither.
    """

    axis: Literal["quality", "diversity", "guard"] = "quality"
    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    values: list[Tensor] | Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("values", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, samples: Samples) -> Tensor:
        """The value of each of the B prompts, ``[B]``; NaN for a prompt to which the metric does not apply."""

    def problems(self) -> list[str]:
        """What is wrong with the settings, found without loading weights."""
        return []

    def load(self) -> Self:
        """Load what the metric needs; does nothing the second time."""
        return self

    def update(self, samples: Samples) -> None:
        self.values.append(self.score(samples).float())  # type: ignore[union-attr]

    def per_prompt(self) -> Tensor:
        """The values so far, one a prompt in the order seen, ``[number of prompts]``."""
        return dim_zero_cat(self.values)

    def compute(self) -> Tensor:
        """The mean over prompts, NaN left out."""
        return self.per_prompt().nanmean()
