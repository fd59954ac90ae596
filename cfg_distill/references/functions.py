"""Vectors and weights of a reference as numbers. Shapes: B prompts, G samples per prompt, R reference vectors, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from cfg_distill.embedders import cosine_distances
from cfg_distill.embedders.similarity import unit
from cfg_distill.references.kernels import Kernel, KernelChoice


def prototypes(vectors: Tensor, weight: Tensor) -> Tensor:
    r"""The mean direction of the outputs of each prompt, :math:`p_x = \sum_r w_{xr} v_r / \lVert v_r \rVert`.

    Args:
        vectors: ``[R, D]``.
        weight: ``[B, R]``.

    Returns:
        ``[B, D]`` float32, not of unit length.
    """
    return weight.float() @ unit(vectors)


def mean_distance(vectors: Tensor, weight: Tensor) -> Tensor:
    r"""The mean cosine distance of two different reference outputs of a prompt: its own diversity.

    .. math:: \frac{\sum_{r \ne s} w_r w_s (1 - \cos(v_r, v_s))}{\sum_{r \ne s} w_r w_s}

    Args:
        vectors: ``[R, D]``.
        weight: ``[B, R]``.

    Returns:
        ``[B]`` float32; NaN for a prompt with one output.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> mean_distance(vectors, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])).round()
        tensor([1., 2.])
    """
    means = []
    for weight_R in weight.float():
        kept_M = weight_R > 0
        pairs_MM = torch.outer(weight_R[kept_M], weight_R[kept_M]).fill_diagonal_(0)
        means.append((pairs_MM * cosine_distances(vectors[kept_M])).sum() / pairs_MM.sum())
    return torch.stack(means)


def weight_of_pairs(weight: Tensor) -> Tensor:
    r"""The weight of two different outputs of a prompt, :math:`\sum_{r \ne s} w_r w_s`: ``[B, R]`` to ``[B]``.

    Example:
        >>> weight_of_pairs(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
        tensor([6., 0.])
    """
    return weight.sum(-1).square() - weight.square().sum(-1)


def witness(embeddings: Tensor, vectors: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    r"""How near each sample lies to the reference of its prompt: :math:`a(y) = \sum_r w_r\, k(e(y), v_r)`.

    Args:
        embeddings: ``[B, G, D]``.
        vectors: ``[R, D]``.
        weight: ``[B, R]``, rows of sum 1.
        kernel: k.

    Returns:
        ``[B, G]``.
    """
    kernel_BGR = kernel(embeddings.flatten(0, 1), vectors).unflatten(0, embeddings.shape[:2])
    return (kernel_BGR * weight.unsqueeze(1)).sum(-1)


def witness_pairs(embeddings: Tensor, counts: Tensor, vectors: Tensor, weight: Tensor, choice: KernelChoice) -> Tensor:
    r"""Nearness to the reference and distance of siblings in one, as a value of pairs: :math:`a(y) + a(y') - k(y, y')`.

    The reference's own term (:func:`within`) less its mean over pairs is the squared kernel distance. A pair with a sample that
    does not count gets the lowest value of the kernel. Its vector says nothing: an encoder puts an empty sample anywhere.

    Args:
        embeddings: ``[B, G, D]``.
        counts: which samples are not degenerate, ``[B, G]`` bool.
        vectors: ``[R, D]``.
        weight: ``[B, R]``, rows of sum 1.
        choice: of the kernel.

    Returns:
        ``[B, G, G]``.
    """
    kernel = choice.of(vectors)
    near_BG = witness(embeddings, vectors, weight, kernel)
    pairs_BGG = near_BG.unsqueeze(-1) + near_BG.unsqueeze(-2) - kernel(embeddings, embeddings)
    return torch.where(counts.unsqueeze(-1) & counts.unsqueeze(-2), pairs_BGG, choice.lowest(vectors))


def within(vectors: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    r"""The reference's own term of a kernel distance, :math:`\sum_{rs} w_r w_s\, k(v_r, v_s)`: ``[B]``."""
    terms = []
    for weight_R in weight:
        kept_M = weight_R > 0
        terms.append(weight_R[kept_M] @ kernel(vectors[kept_M], vectors[kept_M]) @ weight_R[kept_M])
    return torch.stack(terms)
