"""Conditions that the student reads and the teacher does not. Shapes: B prompts, G samples per prompt, N = B G, K labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.generators import Prompt, PromptLike
from cfg_distill.sampling.seeds import Seeds

_PLACES = ("{prompt}", "{label}")


class Conditioner(ABC):
    """Gives each sample a label, and puts it into words that the student reads beside the prompt.

    The teacher reads the prompt alone. So the student learns the teacher's distribution whatever the label is, and a reward may
    pull the labels apart (:class:`~cfg_distill.rewards.CodeInformation`). A student that was trained so is to be asked so: with
    a label. Exports stay plain folders, since a label is nothing but words. It costs that a prompt is read once for each of its
    samples.

    Args:
        values: K, how many labels there are.
        template: what the student is asked, with the prompt at ``{prompt}`` and the label's word at ``{label}``.
        words: of the labels; empty takes their numbers, from 1 on.
        condition: the name of a condition of prompts that carries the word in the place of the template: ``prefix`` for a model
            whose own template drops words that it does not know, as tunes do.

    Attributes:
        siblings_differ: whether the samples of a prompt have different labels.
    """

    siblings_differ = False

    def __init__(
        self,
        values: int = 4,
        template: str = "{prompt}, version {label}",
        words: Sequence[str] = (),
        condition: str = "",
    ) -> None:
        self.values = values
        self.template = template
        self.words = tuple(words) or tuple(str(number + 1) for number in range(values))
        self.condition = condition

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings."""
        found = []
        if not self.values >= 2:
            found.append(
                Problem("values", f"expected at least 2, but got {self.values}. Take 4, say, or no conditioner.")
            )
        if not len(set(self.words)) == len(self.words) == self.values:
            text = f"expected {self.values} different words, one per label, but got {list(self.words)}."
            found.append(Problem("words", f"{text} Give as many, or none for numbers."))
        if not self.condition and not all(place in self.template for place in _PLACES):
            text = f"expected a text with `{'` and `'.join(_PLACES)}`, but got `{self.template}`. Add them."
            found.append(Problem("template", text))
        return found

    @abstractmethod
    def labels(self, group: int, seeds: Seeds) -> Tensor:
        """The labels of G samples of each prompt, ``[B, G]`` whole numbers from 0 to K - 1: they depend on the seeds alone."""

    def asked(self, prompts: Sequence[PromptLike], labels: Tensor) -> list[PromptLike]:
        """What the student is asked for each sample.

        Args:
            prompts: B prompts.
            labels: ``[B, G]``.

        Returns:
            N prompts.

        Raises:
            ConfigError: a label is none of the K.
        """
        if wrong := [label for label in labels.flatten().tolist() if not 0 <= label < self.values]:
            text = f"expected labels from 0 to {self.values - 1} from {type(self).__name__}, but got {wrong[0]}."
            raise ConfigError(Problem("/model.conditioner", text))
        pairs = zip(prompts, labels.tolist(), strict=True)
        return [self._with(prompt, label) for prompt, labels_G in pairs for label in labels_G]

    def every(self, prompts: Sequence[PromptLike]) -> list[PromptLike]:
        """Each prompt with each label, to be checked before a fit."""
        return self.asked(prompts, torch.arange(self.values).expand(len(prompts), -1))

    def _with(self, prompt: PromptLike, label: int) -> Prompt:
        given, word = Prompt.of(prompt), self.words[label]
        if self.condition:
            return Prompt(given.text, **{**given.conditions, self.condition: word})
        return Prompt(self.template.replace(_PLACES[1], word).replace(_PLACES[0], given.text), **given.conditions)


class Codes(Conditioner):
    """A code for each sample, in equal numbers within a group and in random order: siblings are asked different things.

    Source: InfoGAN's discrete codes, as in arXiv 2307.00852. Arguments: :class:`Conditioner`.
    """

    siblings_differ = True

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context)
        if not found and context.samples and context.samples % self.values:
            fitting = [each for each in range(2, context.samples + 1) if context.samples % each == 0]
            text = (
                f"expected a divisor of `@/model.sampling.samples`, {context.samples}, but got {self.values}: each code"
            )
            todo = f"Take {' or '.join(map(str, fitting))}." if fitting else "Raise the samples."
            found.append(Problem("values", f"{text} is as frequent as any other in a group. {todo}"))
        return found

    def labels(self, group: int, seeds: Seeds) -> Tensor:
        return seeds.uniform_BM(group).argsort(-1) % self.values


class Labels(Conditioner):
    """One label for all samples of a prompt, drawn anew each time: a knob of the student.

    Source: label-based fine-tuning of arXiv 2001.05467. Arguments: :class:`Conditioner`.
    """

    def labels(self, group: int, seeds: Seeds) -> Tensor:
        return (seeds.uniform_BM(1) * self.values).long().expand(-1, group)
