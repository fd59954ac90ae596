"""A reward of tunes. Shapes: B prompts, G samples per prompt, N = B * G."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from cfg_distill.embedders.base import texts_of
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.rewards import SampleReward
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.judge import Judge
from cfg_distill.tunes.negatives import REAL

__all__ = ["RealTune"]


class RealTune(SampleReward):
    """The probability that a sample is a tune of the books, under a judge: low for loops, shuffled bars and random notes.

    Multiplied with a reward of diversity (:class:`~cfg_distill.rewards.Mixed`), it pays for samples that differ and are music.

    Args:
        path: the judge's folder. It must be another judge than the one that measures the students.
    """

    def __init__(self, path: str = "tunes:listener") -> None:
        super().__init__()
        self.judge = Judge(path)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) + self.judge.problems()

    def load(self) -> Self:
        self.judge.load()
        return self

    def score(self, samples: Samples) -> Tensor:
        tunes = texts_of(f"Reward `{type(self).__name__}`", samples.outputs)
        tokens = {token for tune in tunes for token in tune.split()}
        if tokens and tokens.isdisjoint(self.judge.network.config.music):
            raise ConfigError(
                f"Reward `{type(self).__name__}`: expected tunes (tokens such as `C:1`), but the model writes"
                f" `{next(filter(str.strip, tunes))[:40]}`. Use a reward that reads it."
            )
        real_N = self.judge.probabilities(tunes, samples.rollout.tokens_NKT.device)[REAL][:, 1]
        return real_N.unflatten(0, (-1, samples.group))
