"""Cosine distances between the embeddings of a group. Shapes: G samples, D embedding width."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(embeddings: Tensor) -> Tensor:
    """Embeddings of length 1 in float32, ``[..., D]`` to ``[..., D + 1]``.

    The added coordinate is 1 for a zero embedding and 0 for any other. So two empty samples are alike (distance 0) and
    differ from everything else (distance 1), where a cosine without it is undefined and would pay for silence.
    """
    embeddings = embeddings.float()
    norm = embeddings.norm(dim=-1, keepdim=True)
    zero = norm == 0
    return torch.cat([embeddings / torch.where(zero, 1.0, norm), zero.float()], dim=-1)


def cosine_distances(embeddings: Tensor) -> Tensor:
    r"""All distances within groups, in float32.

    .. math:: r(y_i, y_j) = 1 - \cos(e_i, e_j) = \tfrac12 \lVert u_i - u_j \rVert^2, \qquad u = e / \lVert e \rVert

    Args:
        embeddings: ``[..., G, D]``, of any length and dtype.

    Returns:
        ``[..., G, G]``: symmetric, 0 on the diagonal, in [0, 2].

    Example:
        >>> cosine_distances(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])).round(decimals=4)
        tensor([[0., 1., 2.],
                [1., 0., 1.],
                [2., 1., 0.]])
    """
    units = unit(embeddings)
    # Differences, not a matrix product: near-identical samples lose no digits, and neither autocast nor a lowered
    # matmul precision reaches it.
    return torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
