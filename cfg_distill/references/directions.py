"""Fixed directions away from the prototype of a prompt. Shapes: B prompts, G samples, K codes, R reference outputs, D width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder
from cfg_distill.embedders.similarity import unit
from cfg_distill.errors import ConfigError, Context, Problem, blamed
from cfg_distill.generators import PromptLike
from cfg_distill.references.base import Reference
from cfg_distill.references.contrasts import Contrasts
from cfg_distill.references.functions import prototypes


def simplex(corners: int) -> Tensor:
    """K points on the unit sphere, each as far from all others as K points can be, ``[K, K - 1]`` float64.

    Example:
        >>> simplex(3).float()
        tensor([[ 1.0000,  0.0000],
                [-0.5000,  0.8660],
                [-0.5000, -0.8660]])
    """
    points = torch.zeros(corners, corners - 1, dtype=torch.float64)
    for axis in range(corners - 1):
        points[axis, axis] = (1 - points[axis].square().sum()).sqrt()
        # The cosine of any two of them is -1 / (K - 1).
        points[axis + 1 :, axis] = (-1 / (corners - 1) - points[axis + 1 :] @ points[axis]) / points[axis, axis]
    return points


def principal_components(residuals: Tensor, number: int) -> Tensor:
    """The directions in which vectors vary most, ``[R, D]`` to ``[number, D]`` float64, of length 1.

    The largest entry of each is positive, so that they are the same wherever they are computed.

    Raises:
        ValueError: the vectors vary in fewer directions.
    """
    rows_RD = residuals.double()
    is_wide = len(rows_RD) < rows_RD.shape[1]
    values, vectors = torch.linalg.eigh(rows_RD @ rows_RD.T if is_wide else rows_RD.T @ rows_RD)
    if number > len(values) or not values[-number] > 1e-9 * values[-1]:
        raise ValueError(f"Expected vectors that vary in at least {number} directions.")
    found = vectors.T.flip(0)[:number]
    if is_wide:  # of few rows in many dimensions, the rows mixed by the vectors of their products
        found = found @ rows_RD
        found = found / found.norm(dim=-1, keepdim=True)
    return found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()


def code_log_probs(residuals: Tensor, directions: Tensor, temperature: float) -> Tensor:
    r"""The log-probability of each code by the direction of a residual.

    .. math:: \log q(c \mid y) = \log \text{softmax}_c \big( \cos(e(y) - p_x,\, m_c) / \tau \big)

    Args:
        residuals: e(y) - p_x, ``[..., D]``; a zero residual is undecided.
        directions: m, ``[K, D]``.
        temperature: tau.

    Returns:
        ``[..., K]`` float32.

    Example:
        >>> code_log_probs(torch.tensor([0.6, 0.8]), simplex(3), 0.5).exp()
        tensor([0.5875, 0.3882, 0.0243])
    """
    return (unit(residuals) @ unit(directions).T / temperature).log_softmax(-1)


class Directions:
    """K directions from the prototype of any prompt: the corners of a simplex in the first K - 1 principal components.

    The components are those of the reference outputs of a fixed list of prompts, each less the prototype of its prompt. So the
    directions are frozen and the same in every fit, and a code means one direction for all prompts.

    Args:
        reference: outputs for each prompt: those of the start model.
        against: a file of prompts.
        values: K.
    """

    def __init__(self, reference: Reference, against: str, values: int) -> None:
        self.listed = Contrasts(reference, against, apart=0.0)
        self.values = values
        self._known: tuple[Embedder, Tensor] | None = None

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the file and the number, by the keys ``against`` and ``values``."""
        found = self.listed.problems()
        if self.values < 2:
            found.append(Problem("values", f"expected at least 2, but got {self.values}."))
        elif context.siblings_differ and not context.training and context.labels != self.values:
            text = (
                f"expected {context.labels}, as many codes as the samples have, but got {self.values}. Set it to that."
            )
            found.append(Problem("values", text))
        return found

    def log_probs(
        self, embeddings: Tensor, prompts: Sequence[PromptLike], embedder: Embedder, temperature: float
    ) -> Tensor:
        """log q of each code for each sample, ``[B, G, D]`` to ``[B, G, K]``; uniform for a zero vector."""
        reference = self.listed.reference
        if self._known is None or self._known[0] is not embedder:
            with blamed(reference, "reference"):
                vectors_RD, weight_BR = (each.cpu() for each in reference.at(self.listed.prompts, embedder))
            own_BD = prototypes(vectors_RD, weight_BR)
            kept = [unit(vectors_RD[weight_R > 0]) - own_D for weight_R, own_D in zip(weight_BR, own_BD, strict=True)]
            try:
                components = principal_components(torch.cat(kept), self.values - 1)
            except ValueError as error:
                text = f"{str(error)[0].lower()}{str(error)[1:]} Lower `@.values`, or add prompts or samples."
                raise ConfigError(Problem("values", text)) from error
            self._known = embedder, (simplex(self.values) @ components).float()
        with blamed(reference, "reference"):
            own_BD = prototypes(*reference.at(prompts, embedder, embeddings.shape[-1])).to(embeddings)
        residual_BGD = torch.where(embeddings.any(-1, keepdim=True), unit(embeddings) - own_BD.unsqueeze(1), 0.0)
        return code_log_probs(residual_BGD, self._known[1].to(embeddings), temperature)

    def lowest(self, temperature: float) -> float:
        """The lowest log q that there can be: that of a code whose direction is opposite to the residual."""
        others = math.log(self.values - 1) + (1 + 1 / (self.values - 1)) / temperature
        return -math.log1p(math.exp(-others)) - others
