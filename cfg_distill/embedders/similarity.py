"""Cosine distances between the embeddings of a group. Shapes: G samples, D embedding width."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(embeddings: Tensor) -> Tensor:
    """Embeddings of length 1 in float32, ``[..., D]``; a zero embedding stays zero.

    A zero embedding stands for an empty or degenerate sample, whose cosine with anything is 0:
    :func:`~cfg_distill.embedders.base.embedded`.
    """
    norm = embeddings.float().norm(dim=-1, keepdim=True)
    return embeddings.float() / torch.where(norm == 0, 1.0, norm)


def cosine_distances(embeddings: Tensor) -> Tensor:
    r"""All distances within groups, in float32.

    .. math:: r(y_i, y_j) = \begin{cases} 0 & e_i = 0 \text{ or } e_j = 0 \\
        1 - \cos(e_i, e_j) = \tfrac12 \lVert u_i - u_j \rVert^2, \quad u = e / \lVert e \rVert & \text{otherwise}
        \end{cases}

    A zero vector marks a sample that is empty or degenerate: no pair with it earns any diversity.

    Args:
        embeddings: ``[..., G, D]``, of any length and dtype.

    Returns:
        ``[..., G, G]``: symmetric, 0 on the diagonal, in [0, 2].

    Example:
        >>> cosine_distances(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])).round(decimals=4)
        tensor([[0., 1., 2., 0.],
                [1., 0., 1., 0.],
                [2., 1., 0., 0.],
                [0., 0., 0., 0.]])
    """
    units = unit(embeddings)
    # Differences, not a matrix product: near-identical samples lose no digits, and neither autocast nor a lowered
    # matmul precision reaches it.
    distances = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    return torch.where(both_count(embeddings), distances, 0.0)


def counted(embeddings: Tensor) -> Tensor:
    """Which samples are no zero vector, ``[..., D]`` to ``[...]``."""
    return embeddings.float().norm(dim=-1) != 0


def both_count(embeddings: Tensor) -> Tensor:
    """Which pairs of a group hold no zero vector, ``[..., G, D]`` to ``[..., G, G]``."""
    counts = counted(embeddings)
    return counts.unsqueeze(-1) & counts.unsqueeze(-2)
