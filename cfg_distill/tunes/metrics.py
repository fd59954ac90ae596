"""How good tunes are, and guards against tunes that only score well. B prompts, G samples per prompt, N = B * G."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import groupby
from typing import Any, Literal, Self

import torch
from torch import Tensor

from cfg_distill.embedders import NGramCounts
from cfg_distill.embedders.base import texts_of
from cfg_distill.errors import Context, Problem, problems_of_counts
from cfg_distill.metrics import PairwiseCosineDiversity, SampleMetric
from cfg_distill.metrics.base import EachText
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.bars import bar_validity, read_note
from cfg_distill.tunes.canonical import rest_share
from cfg_distill.tunes.judge import Judge
from cfg_distill.tunes.melody import MelodicDiversity
from cfg_distill.tunes.negatives import REAL
from cfg_distill.tunes.prompts import problems_of_prompts, understand
from cfg_distill.tunes.quality import (
    FACTORS,
    factors,
    known_runs,
    measured,
    melody_runs,
    repeated_bars,
    repetition,
    training_melodies,
)
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


class _OfPrompts(SampleMetric):
    """A metric that compares tunes with what their prompts ask for."""

    def problems_of_prompts(self, prompts: Sequence[str]) -> list[Problem]:
        return problems_of_prompts(prompts)


class BarValidity(_OfPrompts):
    """Share of bars that add up to the asked metre; see :func:`bar_validity`. Equal bars count once.

    Without an asked metre, the metre counts that fits a sample best.
    """

    axis = "quality"

    def score(self, samples: Samples) -> Tensor:
        return self.each(samples, asked_slots(samples)).unflatten(0, (-1, samples.group)).mean(-1)

    @staticmethod
    def each(samples: Samples, asked: Sequence[dict[str, str]]) -> Tensor:
        """The value of each sample, ``[N]``."""
        pairs = zip(samples.outputs, asked, strict=True)
        return torch.tensor([bar_validity(tune, slots["metre"], once=True) for tune, slots in pairs])


class _JudgeMetric(SampleMetric):
    """A metric that reads the judge's probabilities.

    The judge is no submodule: it never enters a state dict or a checkpoint, and clones of the metric share it.
    """

    axis = "quality"

    def __init__(self, path: str = "tunes:judge", **settings: Any) -> None:
        super().__init__(**settings)
        self.judge = Judge(path)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return self.judge.problems()

    def load(self) -> Self:
        self.judge.load()
        return self


class JudgeProbability(_JudgeMetric, _OfPrompts):
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


class _FactorMetric(_JudgeMetric):
    """A metric that reads the factors of :mod:`cfg_distill.tunes.quality`. Loading reads the corpus too."""

    data_bytes = 30_000_000  # by which a process grows: docs/plan.md

    def load(self) -> Self:
        _ = self.judge.load().bounds, training_melodies()
        return self

    def judged(self, samples: Samples) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The judge's probabilities, and the factors of each sample, ``[N]``, by name."""
        tunes = texts_of(f"Metric `{type(self).__name__}`", samples.outputs)
        probabilities = self.judge.probabilities(tunes, self.device)
        return probabilities, factors(
            measured(tunes, probabilities[REAL][:, 1], training_melodies()), self.judge.bounds
        )


class TuneQuality(_FactorMetric, _OfPrompts):
    """The headline: ``mean(validity, asked) * real * length * repetition * copied``.

    - ``validity``: :class:`BarValidity`; ``asked``: the judge's probability of each attribute that the prompt asks for. The
      mean is over those that apply.
    - The factors are in [0, 1], and 1 within the range of real tunes: see :mod:`cfg_distill.tunes.quality`. ``real`` is low
      for random notes, shuffled bars, loops and scattered rests, by the judge; ``length`` for a few bars and the end;
      ``repetition`` for loops; ``copied`` for tunes learned by heart.

    Args:
        path: the judge's folder.
        without: factors to leave out.
    """

    def __init__(self, path: str = "tunes:judge", without: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(path, **settings)
        self.without = tuple(without)

    def problems(self, context: Context = Context()) -> list[Problem]:
        unknown = [name for name in self.without if name not in FACTORS]
        text = f"expected names among {list(FACTORS)}, but got {unknown}."
        return super().problems(context) + ([Problem("without", text)] if unknown else [])

    def score(self, samples: Samples) -> Tensor:
        asked = asked_slots(samples)
        probabilities, found = self.judged(samples)
        parts = [BarValidity.each(samples, asked)]
        parts += [asked_probability(probabilities[attribute], attribute, asked) for attribute in ATTRIBUTES]
        quality_N = torch.stack(parts).nanmean(0)
        for name, factor_N in found.items():
            quality_N = quality_N if name in self.without else quality_N * factor_N
        return quality_N.unflatten(0, (-1, samples.group)).mean(-1)


class TuneFactor(_FactorMetric):
    """One factor of :class:`TuneQuality` alone: 1 within the range of real tunes, 0 at its worst value.

    Args:
        factor: "real", "length", "repetition" or "copied".
        path: the judge's folder.
    """

    def __init__(
        self,
        factor: Literal["real", "length", "repetition", "copied"] = "real",
        path: str = "tunes:judge",
        **settings: Any,
    ) -> None:
        super().__init__(path, **settings)
        self.factor = factor

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if self.factor not in FACTORS:
            found.append(Problem("factor", f"expected one of {list(FACTORS)}, but got `{self.factor}`."))
        return found

    def score(self, samples: Samples) -> Tensor:
        return self.judged(samples)[1][self.factor].unflatten(0, (-1, samples.group)).mean(-1)


class TuneBigramDiversity(PairwiseCosineDiversity):
    """1 - mean pairwise cosine of the counts of n-grams of tokens: a diversity that no model was trained on.

    Args:
        n: tokens in a gram.
    """

    def __init__(self, n: int = 2, **settings: Any) -> None:
        super().__init__(NGramCounts(n), **settings)


class RestShare(EachText):
    """Guard against silence: mean share of rests in the time of a tune; see :func:`rest_share`."""

    def score_text(self, text: str) -> float:
        return rest_share(text)


class LongestRun(EachText):
    """Guard against a stuck note: mean length of the longest run of one pitch; see :func:`longest_run`."""

    def score_text(self, text: str) -> float:
        return longest_run(text)


class Repetition(EachText):
    """Guard against loops: mean share of n-grams of notes that stood before in the tune; see :func:`repetition`.

    Real tunes have 0.29 (n = 4, 128 tokens).

    Args:
        n: notes in a gram.
    """

    def __init__(self, n: int = 4, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n

    def problems(self, context: Context = Context()) -> list[Problem]:
        return problems_of_counts(n=self.n)

    def score_text(self, text: str) -> float:
        return repetition(text, self.n)


class RepeatedBars(EachText):
    """Guard against loops: mean share of bars that are equal to the bar before; see :func:`repeated_bars`.

    Real tunes have 0.006.
    """

    def score_text(self, text: str) -> float:
        return repeated_bars(text)


class CopyRate(EachText):
    """Guard against learning by heart: share of samples that hold ``n`` notes in a row of a training tune.

    Key, octave, note values, bar signs and rests make no difference: :func:`~cfg_distill.tunes.quality.melody_runs`.

    Loading reads the corpus from the installed music21 package.

    Args:
        n: notes in a row.
    """

    def __init__(self, n: int = 16, **settings: Any) -> None:
        super().__init__(**settings)
        self.n = n
        self.known: Container[tuple[str, ...]] | None = None

    def problems(self, context: Context = Context()) -> list[Problem]:
        return [] if self.n >= 2 else [Problem("n", f"expected at least 2 notes in a row, but got {self.n}.")]

    def load(self) -> Self:
        if self.known is None:
            from cfg_distill.tunes.corpus import tunes_of

            self.known = known_runs((" ".join(tune.tokens) for tune in tunes_of("train")), self.n)
        return self

    def score_text(self, text: str) -> float:
        known = self.load().known or ()
        return any(run in known for run in melody_runs(text, self.n))


__all__ = [
    "BarValidity",
    "CopyRate",
    "JudgeProbability",
    "LongestRun",
    "MelodicDiversity",
    "RepeatedBars",
    "Repetition",
    "RestShare",
    "TuneBigramDiversity",
    "TuneFactor",
    "TuneQuality",
]
