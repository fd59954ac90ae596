"""The base of every metric over groups of samples: one value per prompt, so that intervals over prompts can be taken."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from cfg_distill.embedders import Embedder, embedded
from cfg_distill.embedders.base import texts_of
from cfg_distill.errors import ConfigError, Context, Problem, nearest, problems_of
from cfg_distill.generators.frozen import Frozen
from cfg_distill.sampling.samples import Samples

Axis: TypeAlias = Literal["quality", "diversity", "guard"]
"""Which axis of the front a metric belongs to; guards lie on neither."""


class SampleMetric(Metric):
    """One value per prompt, kept until the end.

    In a ``MetricCollection`` pass ``compute_groups=False``: torchmetrics takes two metrics that agree on the first
    batch (two that are both 0, say) for one and the same, and from then on updates only the first.

    Attributes:
        axis: which axis of the front the metric belongs to; ``guard`` metrics show a failure and lie on neither. On the
            two axes higher is better. Null keeps the axis of the class; ``guard`` suits a metric that the ladder finds bought.
        data_bytes: about how much :meth:`load` keeps beside the weights of encoders, as ``cfg-distill plan`` counts it.
    """

    axis: Axis = "quality"
    data_bytes: int = 0
    higher_is_better: bool | None = True
    is_differentiable = False
    full_state_update = False
    values: list[Tensor] | Tensor

    def __init__(self, axis: Axis | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        if axis is not None:
            self.axis = axis
        if self.axis not in get_args(Axis):
            text = (
                f"expected {', '.join(get_args(Axis))}, but got `{self.axis}`.{nearest(str(self.axis), get_args(Axis))}"
            )
            raise ConfigError(f"`{type(self).__name__}.axis`: {text}")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, samples: Samples) -> Tensor:
        """The value of each of the B prompts, ``[B]``; NaN for a prompt to which the metric does not apply."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        return []

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        """Why there can be no values for these prompts; asked before anything is sampled.

        A problem of a setting names its key; a problem of the prompts has none.
        """
        return []

    def load(self) -> Self:
        """Load what the metric needs; does nothing the second time."""
        return self

    def update(self, samples: Samples) -> None:
        """Take in the groups of a batch of prompts.

        Raises:
            ConfigError: the class does not give one value per prompt.
        """
        values_B, expected = self.score(samples), (len(samples.prompts),)
        if not isinstance(values_B, Tensor) or values_B.shape != expected:
            found = tuple(values_B.shape) if isinstance(values_B, Tensor) else type(values_B).__name__
            text = f"expected a tensor of shape {expected}, one value per prompt, but got {found}."
            raise ConfigError(f"`{type(self).__name__}.score`: {text}")
        self.values.append(values_B.float().to(self.device))  # type: ignore[union-attr]

    def per_prompt(self) -> Tensor:
        """The values of this process so far, one per prompt in the order seen, ``[number of prompts]``."""
        return dim_zero_cat(self.values)

    def compute(self) -> Tensor:
        """The mean over prompts (of all processes), NaN left out."""
        return self.per_prompt().nanmean()


class TextMetric(SampleMetric):
    """A metric that scores the texts of one prompt at a time: override :meth:`score_group`."""

    @abstractmethod
    def score_group(self, texts: list[str]) -> float:
        """The value of one group of G texts; NaN where the metric does not apply."""

    def score(self, samples: Samples) -> Tensor:
        texts_of(f"Metric `{type(self).__name__}`", samples.outputs)
        return torch.tensor([self._number(self.score_group(texts)) for texts in samples.groups()])

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            text = f"expected a number for a group of texts, but got {type(value).__name__}."
            raise ConfigError(f"`{type(self).__name__}.score_group`: {text}") from error


class EachText(TextMetric):
    """A guard that is the mean of a number of each text, of which less is better: override :meth:`score_text`."""

    axis = "guard"
    higher_is_better = False

    @abstractmethod
    def score_text(self, text: str) -> float:
        """The number of one text."""

    def score_group(self, texts: list[str]) -> float:
        return sum(map(self.score_text, texts)) / len(texts)


class EmbeddingMetric(SampleMetric):
    """A metric that looks at samples through a frozen embedder.

    The embedder is no submodule: it never enters a state dict or a checkpoint, and clones of the metric share it.

    Args:
        embedder: the frozen model.
    """

    def __init__(self, embedder: Embedder, **settings: Any) -> None:
        super().__init__(**settings)
        self._frozen = Frozen(embedder)

    @property
    def embedder(self) -> Embedder:
        """The frozen model."""
        return self._frozen.model

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of(self.embedder, context, under="embedder.init_args")

    def load(self) -> Self:
        self.embedder.load()
        return self

    def embedded(self, samples: Samples) -> Tensor:
        """The embeddings of the groups, ``[B, G, D]``, computed on the metric's device; zero for degenerate samples."""
        embedding_ND = embedded(self._frozen.on(self.device), samples.outputs)
        return embedding_ND.unflatten(0, (len(samples.prompts), samples.group))
