"""Samples beside what the start model writes from the same openings. Shapes: B prompts, G samples per prompt, D width."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, embedded
from cfg_distill.embedders.similarity import counted, unit
from cfg_distill.errors import Context, Problem, problems_of
from cfg_distill.generators import Generator, PromptLike
from cfg_distill.generators.frozen import Frozen
from cfg_distill.metrics.base import EmbeddingMetric
from cfg_distill.metrics.likelihood import check_vocabulary
from cfg_distill.sampling import Rollout, Sampling, StartModel
from cfg_distill.sampling.samples import Samples


class Retention(EmbeddingMetric):
    r"""How far an opening still decides how a sample goes on, as it does in the start model: a guard.

    .. math:: \frac{1}{G} \left| \{ i : i = \arg\max_j \cos(e(y_i), e(s_j)) \} \right|

    where the start model writes s_j, on from the opening of the sample y_j and with random numbers of its own, and e sees what
    stands behind the opening. 1 / G by chance. The samples of the start model itself show how much there is to keep: read it
    beside theirs, and beside a quality, since a student that learns nothing keeps all of it. Samples that end within the
    opening are left out; NaN where none is left or the group has one sample. It takes a rollout of the start model. Source:
    arXiv 2205.03805, whose pairs share noise: in tokens that is lost at the first difference.

    Args:
        embedder: the frozen model.
        generator: the start model, which continues the samples' very tokens; of text.
        opening: tokens that the two have in common.
    """

    axis = "guard"
    higher_is_better = None

    def __init__(self, embedder: Embedder, generator: Generator, opening: int = 16, **settings: Any) -> None:
        super().__init__(embedder, **settings)
        self._start = Frozen(generator)
        self.opening = opening

    def problems(self, context: Context = Context()) -> list[Problem]:
        generator = self._start.model
        found = problems_of(generator, context, under="generator.init_args")
        if not found and generator.frame_rate is not None:
            text = (
                f"expected a model of text, whose openings are cut off by tokens, but `{generator.path}` writes sound."
            )
            found.append(Problem("generator", f"{text} Leave the metric out."))
        if not 1 <= self.opening < (context.length or self.opening + 1):
            most = "" if context.length is None else f", and fewer than the {context.length} of a sample"
            found.append(Problem("opening", f"expected at least 1 token{most}, but got {self.opening}."))
        return super().problems(context) + found

    def load(self) -> Self:
        self._start.model.load()
        return super().load()

    def score(self, samples: Samples) -> Tensor:
        check_vocabulary(self._start.on(self.device), samples)
        if samples.group < 2:
            return torch.full((len(samples.prompts),), torch.nan)
        groups = zip(samples.rollout.tokens_BGKT, samples.rollout.mask_BGKT, strict=True)
        return torch.stack([self._of_prompt(prompt, *own) for prompt, own in zip(samples.asked, groups, strict=True)])

    def _of_prompt(self, prompt: PromptLike, tokens_GKT: Tensor, mask_GKT: Tensor) -> Tensor:
        longest = int(mask_GKT.sum(-1).max())  # of this group and not of the batch, whose other prompts have no say
        own = Rollout(tokens_GKT[None], mask_GKT[None], torch.zeros(mask_GKT[None].shape))
        start = StartModel(self._start.model, Sampling(max_new_tokens=longest))
        drawn = start.draw(prompt, len(tokens_GKT), opening=own.beginning(self.opening)).rollout
        own_GD, start_GD = self._behind(own), self._behind(drawn)
        cosine_GG = (unit(own_GD) @ unit(start_GD).T).masked_fill(~counted(start_GD), -torch.inf)
        others_GG = cosine_GG.clone().fill_diagonal_(-torch.inf)
        return (cosine_GG.diagonal() > others_GG.amax(-1))[counted(own_GD)].float().mean()

    def _behind(self, drawn: Rollout) -> Tensor:
        """The embeddings of what stands behind the opening, ``[N, D]``; zero where nothing does."""
        behind = slice(self.opening, None)
        texts = self._start.model.decode(drawn.tokens_NKT[..., behind], drawn.mask_NKT[..., behind])
        return embedded(self._frozen.on(self.device), texts)
