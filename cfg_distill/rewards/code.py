"""A reward for samples whose code can be read off them. Shapes: B prompts, G samples per prompt, K codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.errors import ConfigError, Context, Problem, problems_of_positive
from cfg_distill.references import Directions, Reference
from cfg_distill.rewards.compared import Compared
from cfg_distill.rewards.sample import SampleReward
from cfg_distill.sampling.samples import Samples


class CodeInformation(Compared, SampleReward):
    r"""The information that a sample carries on its own code: siblings with other codes become different.

    .. math:: r(y, c) = \log q(c \mid y, x) + \log K

    with q by the direction in which the sample lies from the prototype of its prompt
    (:func:`~cfg_distill.references.code_log_probs`), one fixed direction per code. Its mean is a lower bound on the mutual
    information of code and sample, at most log K. The directions are frozen. Directions fitted on the batch itself would put
    each sample into its own reward, and leave-one-out would then leave a third of the gradient. A degenerate sample gets the
    lowest value. It needs codes: ``model.conditioner: {class_path: cfg_distill.sampling.Codes}``. Source: arXiv 2307.00852,
    whose head q is trained; its auto-encoder has no place here.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: outputs for each prompt: :class:`~cfg_distill.references.StartSamples`.
        against: a file of prompts, as in ``data.train``, whose outputs give the directions.
        values: K, as many as the conditioner has.
        temperature: tau. The smaller, the sooner a sample that shows its code has no gradient left.
    """

    is_factor = False

    def __init__(
        self, embedder: Embedder, reference: Reference, against: str, values: int = 4, temperature: float = 0.3
    ) -> None:
        super().__init__(embedder, reference)
        self.directions = Directions(reference, against, values)
        self.values = values
        self.temperature = temperature

    @property
    def needs_fit(self) -> str:
        return "it reads the labels that samples were drawn under."

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = super().problems(context) + self.directions.problems(context)
        found += problems_of_positive(temperature=self.temperature)
        if context.training and context.labels != self.values:
            text = f"expected {self.values} labels, one per code, but got {context.labels or 'none'}. Set it to"
            found.append(Problem("/model.conditioner", f"{text} cfg_distill.sampling.Codes with as many `values`."))
        return found

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        return self.directions.listed.problems_of_prompts(prompts)

    def score(self, samples: Samples) -> Tensor:
        labels_BG = samples.rollout.labels_BG
        if labels_BG is None:
            raise ConfigError(
                Problem("", "expected samples with codes, but they have none. Set `@/model.conditioner`.")
            )
        embedding_BGD = self.embedded(samples)
        device = embedding_BGD.device
        with torch.autocast(device.type, enabled=False):
            log_probs_BGK = self.directions.log_probs(
                embedding_BGD, samples.asked, self._frozen.on(device), self.temperature
            )
        own_BG = log_probs_BGK.gather(-1, labels_BG.to(device).unsqueeze(-1))[..., 0]
        lowest = self.directions.lowest(self.temperature)
        return torch.where(self.degenerate(samples).to(device), lowest, own_BG) + math.log(self.values)
