"""Vectors and weights of a reference as numbers. Shapes: B prompts, G samples per prompt, R reference vectors, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from cfg_distill.embedders import cosine_distances
from cfg_distill.embedders.similarity import unit
from cfg_distill.references.kernels import Kernel


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


def within(vectors: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
    r"""The reference's own term of a kernel distance, :math:`\sum_{rs} w_r w_s\, k(v_r, v_s)`: ``[B]``."""
    terms = []
    for weight_R in weight:
        kept_M = weight_R > 0
        terms.append(weight_R[kept_M] @ kernel(vectors[kept_M], vectors[kept_M]) @ weight_R[kept_M])
    return torch.stack(terms)
