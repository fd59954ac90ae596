"""The ladder: cases that a metric must order rightly, and cases that must not buy it.

A metric that pays bland text more than good text, or silence more than music, is for sale: training and comparison against
it find the bargain. So a domain has a :class:`Ladder` of samples whose order is known, and
:func:`cfg_distill.evaluation.verdicts.validate` climbs it:

    axis         what must hold, on the same prompts
    quality      real > guided > base > every degenerate kind
    diversity    a group of one sample rewritten cheaply (``same``) earns less than a share of what different ones earn
    guard        every degenerate kind is seen by a guard or by a metric of quality

Shapes: B prompts, G samples per prompt, N = B * G, T positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch

from cfg_distill.data.reading import normalised
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.evaluation.intervals import LEAST_PROMPTS
from cfg_distill.generators import CausalLM, Prompt, PromptLike
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples

RungKind = Literal["real", "guided", "base", "degenerate", "same", "different"]


@dataclass(frozen=True)
class Rung:
    """Samples of one kind, for all prompts of a ladder.

    Attributes:
        name: as the table shows it: ``looping``.
        kind: ``real``, ``guided`` and ``base`` in this order of quality; ``degenerate`` must be below ``base``. Groups of
            kind ``same`` hold one sample in several guises, or empty ones; groups of kind ``different`` hold good samples that
            differ.
        made: the samples, or a function that draws them when they are first read: a study asks for some kinds alone.
    """

    name: str
    kind: RungKind
    made: Samples | Callable[[], Samples]

    @cached_property
    def samples(self) -> Samples:
        """Groups of the same prompts, in the same order, as those of every other rung."""
        return self.made() if callable(self.made) else self.made


class Ladder(ABC):
    """What a domain provides: samples whose order is known. ``cfg_distill.json`` in a model folder may name a subclass.

    It is made without arguments. Constructing one loads nothing.
    """

    def prompts(self) -> Sequence[PromptLike]:
        """The prompts where the user names none: development prompts, and never the prompts of a report."""
        raise ConfigError(f"Ladder `{type(self).__name__}`: it has no prompts of its own. Give a file of prompts.")

    def prompts_among(self, prompts: Sequence[PromptLike]) -> Sequence[PromptLike]:
        """The prompts that a study takes: those of its own that the ladder has too, or else all of the ladder."""
        own = {normalised(prompt) for prompt in self.prompts()}
        return enough([prompt for prompt in prompts if normalised(prompt) in own]) or self.prompts()

    def problems(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        """Why there is no ladder for these prompts; asked before anything is loaded."""
        return []

    def load(self) -> Self:
        """Load what the rungs need; does nothing the second time."""
        return self

    @abstractmethod
    def rungs(self, prompts: Sequence[PromptLike]) -> Iterable[Rung]:
        """The rungs, for these prompts: the same ones at every call."""


def enough(prompts: Sequence[PromptLike]) -> Sequence[PromptLike]:
    """The prompts, or none where they are fewer than an interval needs."""
    return prompts if len(prompts) >= LEAST_PROMPTS else []


def samples_of(
    prompts: Sequence[PromptLike],
    groups: Sequence[Sequence[Any]],
    generator: CausalLM | None = None,
    longest: int | None = None,
) -> Samples:
    """Outputs that no model drew, as a rollout would hold them.

    Args:
        prompts: B prompts.
        groups: B groups of G outputs: texts, or anything that the metrics read.
        generator: a model whose tokens texts become, cut to ``longest`` of them and else closed by an end token, as the model
            writes them: for metrics that read tokens. None: a token for each word (a text) or each 1/50 s (a waveform), all
            of them 0, so that only their number says something.
        longest: tokens; None for no limit. Without a generator the outputs themselves are not cut.

    Raises:
        ValueError: groups of different sizes.

    Example:
        >>> samples_of(["a prompt"], [["two words", "and three words"]]).rollout.mask_BGKT.sum(-1).flatten().tolist()
        [2, 3]
    """
    sizes = {len(group) for group in groups}
    if len(sizes) != 1 or len(groups) != len(prompts):
        raise ValueError(
            f"Expected a group of one size for each of {len(prompts)} prompts, but got {list(map(len, groups))}."
        )
    outputs = [output for group in groups for output in group]
    rows = [_tokens(output, generator, longest) for output in outputs]
    width = longest if generator is not None and longest is not None else max(1, *map(len, rows))
    tokens_NKT = torch.full((len(rows), 1, width), 0 if generator is None else generator.pad_token)
    mask_NKT = torch.zeros_like(tokens_NKT, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens_NKT[index, 0, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask_NKT[index, 0, : len(row)] = True
    shape = (len(groups), *sizes)
    unknown_NKT = torch.full(tokens_NKT.shape, torch.nan)  # nobody drew these tokens
    drawn = Rollout(*(part.unflatten(0, shape) for part in (tokens_NKT, mask_NKT, unknown_NKT)))
    read = outputs if generator is None else generator.decode(tokens_NKT, mask_NKT)
    return Samples([Prompt.of(prompt).text for prompt in prompts], list(read), drawn, list(prompts))


def _tokens(output: Any, generator: CausalLM | None, longest: int | None) -> list[int]:
    if generator is None:
        count = len(output.split()) if isinstance(output, str) else round(50 * output.seconds)
        return [0] * (count if longest is None else min(count, longest))
    row: list[int] = generator.tokenizer(output, add_special_tokens=False)["input_ids"][:longest]
    return row if len(row) == longest else [*row, generator.end_tokens[0]]
