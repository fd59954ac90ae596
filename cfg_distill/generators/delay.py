"""The layout of codebooks that start one after the other. Shapes: N rows, K codebooks, F frames, T = F + longest delay.

A model with several codebooks per frame predicts them with delays: at position t, codebook k holds frame ``t - delays[k]``, so
that a later codebook sees the earlier codebooks of its own frame. With delays 0, 1, 2 and four frames::

    position     0 1 2 3 4 5
    codebook 0   0 1 2 3
    codebook 1     0 1 2 3
    codebook 2       0 1 2 3

Tokens have this layout everywhere between sampling and decoding. Tokens are drawn in the order of its positions, and the hidden
state at a position predicts all codebooks of that position. Source: Copet et al., arXiv 2306.05284, section 2.2 (there delays
0, 1, 2, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def delayed(tokens_NKF: Tensor, delays: Sequence[int], fill: int) -> Tensor:
    """Frames to positions: ``[N, K, F]`` to ``[N, K, T]``, ``fill`` where a codebook has no frame."""
    num_frames = tokens_NKF.shape[-1]
    shape = (*tokens_NKF.shape[:-1], num_frames + max(delays))
    tokens_NKT = torch.full(shape, fill, dtype=tokens_NKF.dtype, device=tokens_NKF.device)
    for k, delay in enumerate(delays):
        tokens_NKT[:, k, delay : delay + num_frames] = tokens_NKF[:, k]
    return tokens_NKT


def undelayed(tokens_NKT: Tensor, delays: Sequence[int]) -> Tensor:
    """Positions to frames, the inverse of :func:`delayed`: ``[N, K, T]`` to ``[N, K, F]``."""
    num_frames = max(tokens_NKT.shape[-1] - max(delays), 0)
    rows = [tokens_NKT[:, k, delay : delay + num_frames] for k, delay in enumerate(delays)]
    return torch.stack(rows, dim=1)


def cells_at(position: int, delays_K: Tensor, num_frames: int, end_N: Tensor, end_codebooks: int = 1) -> Tensor:
    """Which cells of a position exist: ``[N, K]``.

    The first codebooks draw the end, in most models codebook 0 alone. The last frame has cells in these, and in no other.

    Args:
        position: t.
        delays_K: the delay of each codebook.
        num_frames: F.
        end_N: the frame of the end token; F where there is none.
        end_codebooks: the number of codebooks that draw the end.
    """
    frame_K = position - delays_K
    last_NK = end_N[:, None] - (torch.arange(len(delays_K), device=delays_K.device) >= end_codebooks).long()
    return (frame_K >= 0) & (frame_K < num_frames) & (frame_K <= last_NK)
