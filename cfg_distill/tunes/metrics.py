"""How good tunes are, and guards against tunes that only score well. B prompts, G samples per prompt, N = B * G."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Literal, Self

import torch
from torch import Tensor

from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import Context, Problem
from cfg_distill.folders import problems_of_folder
from cfg_distill.metrics import PairwiseCosineDiversity, SampleMetric, TextMetric
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.bars import bar_validity, read_note
from cfg_distill.tunes.canonical import rest_share
from cfg_distill.tunes.judge import Judge
from cfg_distill.tunes.melody import MelodicDiversity
from cfg_distill.tunes.prompts import understand
from cfg_distill.tunes.segments import ATTRIBUTES
from cfg_distill.tunes.tokenizer import VALUES


def asked_slots(samples: Samples) -> list[dict[str, str]]:
    """The slots that the prompt of each of the N samples asks for."""
    slots = [understand(prompt).slots for prompt in samples.prompts]
    return [slot for slot in slots for _ in range(samples.group)]


def asked_probability(probability_NC: Tensor, attribute: str, asked: Sequence[dict[str, str]]) -> Tensor:
    """The probability of the asked value of an attribute, ``[N]``; NaN where it was not asked."""
    values = VALUES[attribute]
    return torch.stack(
        [
            row_C[values.index(slots[attribute])] if slots[attribute] in values else torch.tensor(torch.nan)
            for row_C, slots in zip(probability_NC.cpu(), asked, strict=True)
        ]
    )


def longest_run(tune: str) -> int:
    """The longest run of one pitch, in notes; bar signs do not break it."""
    pitches = [note.pitch for token in tune.split() if (note := read_note(token)) is not None]
    return max((len(list(run)) for _, run in groupby(pitches)), default=0)


def ngram_set(tunes: Iterable[Sequence[str]], n: int) -> set[tuple[str, ...]]:
    """Every n-gram of token sequences."""
    return {tuple(tokens[start : start + n]) for tokens in tunes for start in range(len(tokens) - n + 1)}


class BarValidity(SampleMetric):
    """Share of bars that add up to the asked metre; see :func:`bar_validity`.

    Without an asked metre, the metre counts that fits a sample best.
    """

    axis = "quality"

    def score(self, samples: Samples) -> Tensor:
        return self.each(samples, asked_slots(samples)).unflatten(0, (-1, samples.group)).mean(-1)

    @staticmethod
    def each(samples: Samples, asked: Sequence[dict[str, str]]) -> Tensor:
        """The value of each sample, ``[N]``."""
        validity = [bar_validity(tune, slots["metre"]) for tune, slots in zip(samples.outputs, asked, strict=True)]
        return torch.tensor(validity)


class _JudgeMetric(SampleMetric):
    """A metric that reads the judge's probabilities.

    The judge is no submodule: it never enters a state dict or a checkpoint, and clones of the metric share it.
    """

    axis = "quality"

    def __init__(self, path: str = "tunes:judge", **settings: Any) -> None:
        super().__init__(**settings)
        self.judge = Judge(path)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return [problem.under("path") for problem in problems_of_folder(self.judge.path)]

    def load(self) -> Self:
        self.judge.load()
        return self


class JudgeProbability(_JudgeMetric):
    """Probability of the asked origin, rhythm or mode under the judge; NaN for prompts that do not ask for it.

    Args:
        attribute: "origin", "rhythm" or "mode".
        path: the judge's folder.
    """

    def __init__(
        self, attribute: Literal["origin", "rhythm", "mode"] = "rhythm", path: str = "tunes:judge", **settings: Any
    ) -> None:
        super().__init__(path, **settings)
        self.attribute = attribute

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if self.attribute not in ATTRIBUTES:
            found.append(Problem("attribute", f"expected one of {list(ATTRIBUTES)}, but got `{self.attribute}`."))
        return found

    def score(self, samples: Samples) -> Tensor:
        probability_NC = self.judge.probabilities(samples.outputs, self.device)[self.attribute]
        asked_N = asked_probability(probability_NC, self.attribute, asked_slots(samples))
        return asked_N.unflatten(0, (-1, samples.group)).mean(-1)


class TuneQuality(_JudgeMetric):
    """The headline: mean of bar validity and of the judge's probabilities of the values that the prompt asks for.

    Bar validity always counts, an attribute only where it was asked; the mean is over those that count.

    Args:
        path: the judge's folder.
    """

    def score(self, samples: Samples) -> Tensor:
        asked = asked_slots(samples)
        probabilities = self.judge.probabilities(samples.outputs, self.device)
        parts = [BarValidity.each(samples, asked)]
        parts += [asked_probability(probabilities[attribute], attribute, asked) for attribute in ATTRIBUTES]
        return torch.stack(parts).nanmean(0).unflatten(0, (-1, samples.group)).mean(-1)


class TuneBigramDiversity(PairwiseCosineDiversity):
    """1 - mean pairwise cosine of the counts of n-grams of tokens: a diversity that no model was trained on.

    Args:
        n: tokens in a gram.
    """

    def __init__(self, n: int = 2, **settings: Any) -> None:
        super().__init__(NGramCounts(n), **settings)


class RestShare(TextMetric):
    """Guard against silence: mean share of rests in the time of a tune; see :func:`rest_share`."""

    axis = "guard"
    higher_is_better = False

    def score_group(self, texts: list[str]) -> float:
        return sum(map(rest_share, texts)) / len(texts)


class LongestRun(TextMetric):
    """Guard against a stuck note: mean length of the longest run of one pitch; see :func:`longest_run`."""

    axis = "guard"
    higher_is_better = False

    def score_group(self, texts: list[str]) -> float:
        return sum(map(longest_run, texts)) / len(texts)


class CopyRate(TextMetric):
    """Guard against learning by heart: share of samples that hold ``n`` tokens in a row of a training tune.

    Loading reads the corpus from the installed music21 package.

    Args:
        n: tokens in a row.
    """

    axis = "guard"
    higher_is_better = False

    def __init__(self, n: int = 16, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n
        self.known: frozenset[tuple[str, ...]] | None = None

    def load(self) -> Self:
        if self.known is None:
            from cfg_distill.tunes.corpus import tunes_of

            self.known = frozenset(ngram_set((tune.tokens for tune in tunes_of("train")), self.n))
        return self

    def score_group(self, texts: list[str]) -> float:
        known = self.load().known or frozenset()
        return sum(not known.isdisjoint(ngram_set([text.split()], self.n)) for text in texts) / len(texts)


__all__ = [
    "BarValidity",
    "CopyRate",
    "JudgeProbability",
    "LongestRun",
    "MelodicDiversity",
    "RestShare",
    "TuneBigramDiversity",
    "TuneQuality",
]
