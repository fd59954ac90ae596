"""Nearer to the own prompt than to others. Shapes: B prompts, G samples per prompt, C contrasted prompts, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.embedders.similarity import unit
from cfg_distill.errors import Context, Problem, problems_of_positive
from cfg_distill.references import Contrasts, Reference
from cfg_distill.rewards.compared import Compared
from cfg_distill.rewards.sample import SampleReward
from cfg_distill.sampling.samples import Samples


def log_contrast(embeddings: Tensor, own: Tensor, others: Tensor, counts: Tensor, temperature: float) -> Tensor:
    r"""The log-probability of the own prompt by the cosine with its prototype, among those of other prompts.

    .. math:: \log \frac{e^{\cos(e, p_x) / \tau}}{e^{\cos(e, p_x) / \tau} + \sum_c e^{\cos(e, p_c) / \tau}}

    Args:
        embeddings: ``[B, G, D]``.
        own: the prototype of each prompt, ``[B, D]``.
        others: of the other prompts, ``[C, D]``.
        counts: which of them count for each prompt, ``[B, C]`` bool.
        temperature: tau.

    Returns:
        ``[B, G]`` float32, at most 0.
    """
    unit_BGD = unit(embeddings)
    own_BG1 = (unit_BGD * unit(own).unsqueeze(1)).sum(-1, keepdim=True) / temperature
    others_BGC = (unit_BGD @ unit(others).T / temperature).masked_fill(~counts.unsqueeze(1), -torch.inf)
    return torch.cat([own_BG1, others_BGC], dim=-1).log_softmax(-1)[..., 0]


class PromptContrast(Compared, SampleReward):
    """Each sample nearer to the outputs of its own prompt than to those of others; see :func:`log_contrast`.

    A guard beside a reward of diversity, inside an additive :class:`~cfg_distill.rewards.Mixed`: alone it pulls all samples
    onto the prototype. The prototype of a prompt is the mean direction of its reference outputs. It is frozen: prototypes of
    the student's own batch would put each sample into the rewards of all others, and the leave-one-out baseline would then
    leave a fifth of the gradient, or less. A degenerate sample counts as one that lies at the least fitting of the other
    prompts. Source of the contrast: arXiv 2310.06368, on classes and regions of images.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: outputs for each prompt; it must tell prompts apart.
        against: a file of prompts to contrast with, as in ``data.train``. A fixed list, so that neither the batch size nor the
            number of devices changes the reward.
        temperature: tau. The smaller, the sooner a sample that fits has no gradient left.
        apart: prompts whose prototypes are nearer than this cosine distance mean the same, and are not contrasted.
    """

    is_factor = False

    def __init__(
        self, embedder: Embedder, reference: Reference, against: str, temperature: float = 0.07, apart: float = 0.1
    ) -> None:
        super().__init__(embedder, reference)
        self.contrasts = Contrasts(reference, against, apart)
        self.temperature = temperature

    def problems(self, context: Context = Context()) -> list[Problem]:
        return (
            super().problems(context) + self.contrasts.problems() + problems_of_positive(temperature=self.temperature)
        )

    def problems_of_reference(self, prompts: Sequence[str]) -> list[Problem]:
        return self.contrasts.problems_of_prompts(prompts)

    def score(self, samples: Samples) -> Tensor:
        embedding_BGD = self.embedded(samples)
        device = embedding_BGD.device
        degenerate_BG = self.degenerate(samples).to(device)
        with torch.autocast(device.type, enabled=False):
            own_BD, others_CD, counts_BC = self.contrasts.at(
                samples.asked, self._frozen.on(device), embedding_BGD.shape[-1]
            )
            value_BG = log_contrast(embedding_BGD, own_BD, others_CD, counts_BC, self.temperature)
            for place in degenerate_BG.any(-1).nonzero().flatten().tolist():  # of one prompt, it takes C x C numbers
                own_1D, counts_1C = own_BD[[place]], counts_BC[[place]]
                elsewhere_1C = log_contrast(others_CD[None], own_1D, others_CD, counts_1C, self.temperature)
                lowest = elsewhere_1C.masked_fill(~counts_1C, 0.0).amin()
                value_BG[place] = torch.where(degenerate_BG[place], lowest, value_BG[place])
        return value_BG
