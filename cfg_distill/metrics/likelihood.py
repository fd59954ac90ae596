"""Samples under a model: how likely they are, how much of it is owed to the prompt, and how wide the choice of each token was.

Shapes: B prompts, G samples per prompt, N = B * G rows, K codebooks, T positions, V vocabulary, M cells.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from cfg_distill.checkpoints import spec_of
from cfg_distill.errors import ConfigError, Context, Problem, problems_of, problems_of_counts
from cfg_distill.generators import Generator, Guidance, Predictions, PromptLike
from cfg_distill.generators.frozen import Frozen
from cfg_distill.generators.guided import problems_of_drop, under
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.sampling.distribution import in_nucleus
from cfg_distill.sampling.samples import Samples

CHUNK = 512
"""Cells whose logits exist at once."""

CellValue: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A value of each cell from its logits ``[M, V]`` and its token ``[M]``: ``[M]`` float32."""


def log_likelihood(predictions: Predictions, tokens: Tensor, mask: Tensor, chunk: int = CHUNK) -> Tensor:
    r"""Sum of the log-probabilities of each row's tokens, at temperature 1.

    .. math:: \log p(y) = \sum_{k, t} m_{k t} \log \operatorname{softmax}(z_{k t})_{y_{k t}}

    Args:
        predictions: predictions at every position of ``[N, K, T]``.
        tokens: y, ``[N, K, T]``.
        mask: m, True on the cells that exist, ``[N, K, T]``; masked cells are never read.
        chunk: cells whose logits exist at once.

    Returns:
        ``[N]`` float32.

    Example:
        >>> logits = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]]])
        >>> from cfg_distill.generators import Logits
        >>> log_likelihood(Logits(logits), torch.zeros(1, 1, 2, dtype=torch.long), torch.tensor([[[True, False]]]))
        tensor([-0.6931])
    """
    return log_likelihoods(predictions, tokens, mask, chunk).sum((-2, -1))


def log_likelihoods(predictions: Predictions, tokens: Tensor, mask: Tensor, chunk: int = CHUNK) -> Tensor:
    """The summands of :func:`log_likelihood`, ``[N, K, T]`` float32; 0 in masked cells."""
    return over_cells(log_probs_of, predictions, tokens, mask, chunk)


def over_cells(value: CellValue, predictions: Predictions, tokens: Tensor, mask: Tensor, chunk: int = CHUNK) -> Tensor:
    """A value of each cell, ``[N, K, T]`` float32; 0 in masked cells. Arguments: see :func:`log_likelihood`."""
    found_NKT = torch.zeros(tokens.shape, device=tokens.device)
    for k in range(tokens.shape[1]):
        row_M, position_M = mask[:, k].nonzero(as_tuple=True)
        for start in range(0, len(row_M), chunk):
            rows, positions = row_M[start : start + chunk], position_M[start : start + chunk]
            found_NKT[rows, k, positions] = value(predictions.at(k, rows, positions), tokens[rows, k, positions])
    return found_NKT


def log_probs_of(logits_MV: Tensor, tokens_M: Tensor) -> Tensor:
    """The log-probability of each token, ``[M]`` float32."""
    return logits_MV.float().log_softmax(-1).gather(-1, tokens_M[:, None])[:, 0]


def nucleus_sizes(logits: Tensor, p: float = 0.9) -> Tensor:
    """How many of the likeliest tokens first hold probability p, at temperature 1: those that top-p sampling keeps.

    Args:
        logits: ``[..., V]``.
        p: above 0, below 1.

    Returns:
        ``[...]`` float32.

    Example:
        >>> nucleus_sizes(torch.tensor([[2.0, 1.0, 0.0, -1.0], [9.0, 0.0, 0.0, 0.0]]))
        tensor([3., 1.])
    """
    ordered_probs = logits.float().softmax(-1).sort(descending=True).values
    return in_nucleus(ordered_probs, p).sum(-1).float()


def mean_of_cells(values_BGKT: Tensor, mask_BGKT: Tensor) -> Tensor:
    """The mean over all cells of a prompt's samples, ``[B]``; NaN where there is no cell."""
    return values_BGKT.where(mask_BGKT, 0.0).sum((1, 2, 3)) / mask_BGKT.sum((1, 2, 3))


class Reader:
    """A base model that reads the tokens of samples, with their prompt and without. Metrics of one base share one reader.

    It must have the vocabulary of the models that drew the samples: it reads their very tokens, not their text.

    Args:
        generator: the base.
        batch_size: prompts whose groups are read at once.
    """

    # Weak: a base goes when the last metric that reads it goes.
    _shared: ClassVar[WeakValueDictionary[str, Reader]] = WeakValueDictionary()

    def __init__(self, generator: Generator, batch_size: int) -> None:
        self.generator = generator
        self.batch_size = batch_size
        self._samples: Samples | None = None
        self._answers: dict[bool, Tensor] = {}

    @classmethod
    def of(cls, generator: Generator, batch_size: int) -> Reader:
        """The reader of a base: the same one for the same settings, so that its weights and answers exist once."""
        key = json.dumps([spec_of(generator), batch_size], sort_keys=True, default=str)
        return cls._shared.setdefault(key, cls(generator, batch_size))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Reader.of, (self.generator, self.batch_size))

    def load(self) -> None:
        """Load the base, frozen."""
        self.generator.load().requires_grad_(False).eval()

    def log_likelihood(self, samples: Samples, with_prompt: bool, device: torch.device) -> Tensor:
        """log p(sample | its prompt), or without the prompt, summed over cells: ``[N]``."""
        return self.log_likelihoods(samples, with_prompt, device).sum((-2, -1))

    def log_likelihoods(self, samples: Samples, with_prompt: bool, device: torch.device) -> Tensor:
        """The same for each cell, ``[N, K, T]``; 0 where masked. The last answers are kept."""
        if self._samples is not samples:
            self._samples, self._answers = samples, {}
        if with_prompt not in self._answers:
            self._answers[with_prompt] = self._read(samples, with_prompt, device)
        return self._answers[with_prompt]

    def nucleus_sizes(self, samples: Samples, p: float, guidance: Guidance | None, device: torch.device) -> Tensor:
        """:func:`nucleus_sizes` of each cell, given the prompt and under guidance, ``[N, K, T]``; 0 where masked."""
        return self._read(samples, True, device, lambda logits_MV, _: nucleus_sizes(logits_MV, p), guidance)

    @torch.no_grad()
    def _read(
        self,
        samples: Samples,
        with_prompt: bool,
        device: torch.device,
        value: CellValue = log_probs_of,
        guidance: Guidance | None = None,
    ) -> Tensor:
        reader = under(self.generator.to(device), guidance)
        check_vocabulary(self.generator, samples)
        tokens_BGKT, mask_BGKT = samples.rollout.tokens_BGKT.to(device), samples.rollout.mask_BGKT.to(device)
        parts = []
        for start in range(0, len(samples.prompts), self.batch_size):
            part = slice(start, start + self.batch_size)
            tokens_NKT, mask_NKT = tokens_BGKT[part].flatten(0, 1), mask_BGKT[part].flatten(0, 1)
            # One dropped prompt serves all rows, and is read once.
            prompts: Sequence[PromptLike | None] = samples.asked[part] if with_prompt else [None]
            predictions = reader.predictions(prompts, tokens_NKT, mask_NKT)
            parts.append(over_cells(value, predictions, tokens_NKT, mask_NKT))
        return torch.cat(parts)


def check_vocabulary(generator: Generator, samples: Samples) -> None:
    """Tokens of another model would be read as other words, and give numbers that mean nothing.

    Raises:
        ConfigError: the first sample is another text under this generator.
    """
    first, drawn = samples.outputs[0], samples.rollout
    if isinstance(first, str) and generator.decode(drawn.tokens_NKT[:1], drawn.mask_NKT[:1]) != [first]:
        raise ConfigError(
            f"Metrics under the model `{generator.path}`: expected samples of models with its vocabulary, but"
            f" it reads the tokens of {first[:40]!r} as another text. Name the base of these models."
        )


class LikelihoodMetric(SampleMetric):
    """A metric that asks a base model. The base is no submodule: it never enters a state dict, and clones share it.

    Args:
        generator: the base that the samples' models were trained from; it reads their very tokens.
        batch_size: prompts whose groups are read at once.
    """

    def __init__(self, generator: Generator, batch_size: int = 4, **settings: Any) -> None:
        super().__init__(**settings)
        self._frozen = Frozen(Reader.of(generator, batch_size))

    @property
    def _reader(self) -> Reader:
        return self._frozen.model

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = problems_of(self._reader.generator, context, under="generator.init_args")
        return found + problems_of_counts(batch_size=self._reader.batch_size)

    def load(self) -> Self:
        self._reader.load()
        return self

    def per_token(self, samples: Samples, with_prompt: bool) -> Tensor:
        """Mean log-probability of a sample's cells, in nats, ``[B, G]``."""
        sum_N = self._reader.log_likelihood(samples, with_prompt, self.device)
        mean_N = sum_N / samples.rollout.mask_NKT.sum((-2, -1)).to(sum_N.device)
        return mean_N.unflatten(0, (len(samples.prompts), samples.group))


class LogProbability(LikelihoodMetric):
    """Mean log-probability per token of the samples under the base, given the prompt, in nats: a guard.

    It falls when text breaks, and rises with blandness and repetition: neither end is quality. Arguments:
    :class:`LikelihoodMetric`.
    """

    axis = "guard"
    higher_is_better = None

    def score(self, samples: Samples) -> Tensor:
        return self.per_token(samples, with_prompt=True).mean(-1)


class PointwiseMutualInformation(LikelihoodMetric):
    r"""Information on the prompt that a token of the samples carries, in nats, by the base.

    .. math:: \frac{1}{T} \log \frac{p(y \mid x)}{p(y)}

    with p(y) under the dropped prompt. Guidance raises it, since the guided distribution is proportional to
    p(y) (p(y|x) / p(y))^gamma at each position. Blandness does not buy it (bland text is as likely without the prompt),
    nor does repetition (what was said before is likely either way). Broken text may: read it beside :class:`LogProbability`.
    Source of the quantity: Li et al., arXiv 1510.03055, section 3. Arguments: :class:`LikelihoodMetric`.
    """

    axis = "quality"

    def score(self, samples: Samples) -> Tensor:
        return (self.per_token(samples, with_prompt=True) - self.per_token(samples, with_prompt=False)).mean(-1)


class SampledEntropy(SampleMetric):
    r"""Mean entropy of the distributions that drew the tokens, in nats, from the drawn tokens alone: a guard.

    .. math:: - \frac{\sum_{i, k, t} \log p(y_{i k t})}{\text{number of cells}}

    over all cells of a prompt's samples. The sum over a sample has the expectation of the sum of the entropies at its cells. It
    needs no model: sampling notes the log-probabilities. Under a temperature, a filter or guidance, p is the distribution under
    them. Falling, it announces samples that are alike. Guidance lowers it in text (Sanchez et al., arXiv 2306.17806). NaN for
    samples that nobody drew, such as written texts.
    """

    axis = "guard"
    higher_is_better = None

    def score(self, samples: Samples) -> Tensor:
        drawn = samples.rollout
        chosen = slice(drawn.opening, None)  # nobody drew the tokens of an opening
        return mean_of_cells(-drawn.log_probs_BGKT[..., chosen], drawn.mask_BGKT[..., chosen])


class NucleusSize(LikelihoodMetric):
    """How many tokens hold most of the probability, along the samples: a guard.

    The mean of :func:`nucleus_sizes` over all cells of a prompt's samples, under a model that reads them: with guidance or
    without, on the model's own samples or on those of others. One pass reads them, two under guidance. Source: Sanchez et al.,
    arXiv 2306.17806, where guidance makes it smaller.

    Args:
        generator: the model whose choice it is; it reads the samples' very tokens.
        p: the probability that they hold.
        guidance: of that model; null for none.
        batch_size: prompts whose groups are read at once.
    """

    axis = "guard"
    higher_is_better = None

    def __init__(
        self,
        generator: Generator,
        p: float = 0.9,
        guidance: Guidance | None = None,
        batch_size: int = 4,
        **settings: Any,
    ) -> None:
        super().__init__(generator, batch_size, **settings)
        self.p = p
        self.guidance = guidance

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if self.guidance is not None:
            drop = [] if found else problems_of_drop(self._reader.generator, self.guidance)
            found += [
                *problems_of(self.guidance, context, under="guidance"),
                *(each.under("guidance.drop") for each in drop),
            ]
        if not 0 < self.p < 1:
            found.append(Problem("p", f"expected a probability above 0 and below 1, but got {self.p}."))
        return found

    def score(self, samples: Samples) -> Tensor:
        sizes_NKT = self._reader.nucleus_sizes(samples, self.p, self.guidance, self.device)
        mask_BGKT = samples.rollout.mask_BGKT.to(sizes_NKT.device)
        return mean_of_cells(sizes_NKT.view_as(mask_BGKT), mask_BGKT)
