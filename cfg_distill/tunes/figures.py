"""The network under `tunes:figures`: it counts melodic figures, and maps the counts linearly.

A figure is a few notes that lie close together, as intervals and distances in time, whatever stands between them. A note that
is made a rest takes its own figures away and adds none, so the proportions of the others stay. The unit of time is the median
length of the tune's notes, so that a melody written in other note values has the same figures.

Shapes: N tunes, L notes, F figures, V buckets of a family, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from cfg_distill.tunes.canonical import Sounding
from cfg_distill.tunes.notes import PADDING, STEP, TICKS, WIDEST, NotesNetwork, median_of, rows_of

WINDOW = 16  # halves of the unit of time that a figure spans at most
PRIME = 2**31 - 1


@dataclass(frozen=True)
class Family:
    """One kind of figure.

    Attributes:
        places: which of the following notes a note is joined with, one entry per figure that begins at it.
        hears: ``melody``: intervals and distances in time; ``rhythm``: distances in time; ``lengths``: intervals and the
            lengths of both notes.
        buckets: figures are hashed into so many.
    """

    places: tuple[tuple[int, ...], ...]
    hears: str
    buckets: int


FAMILIES = (
    Family(tuple((place,) for place in range(1, 9)), "melody", 512),
    Family(tuple(combinations(range(1, 7), 2)), "melody", 4096),
    Family(tuple(combinations(range(1, 6), 3)), "melody", 4096),
    Family(tuple(combinations(range(1, 6), 3)), "rhythm", 512),
    Family(tuple((place,) for place in range(1, 4)), "lengths", 2048),
)
BUCKETS = sum(family.buckets for family in FAMILIES)


@dataclass
class FiguresConfig:
    """Everything but the weights.

    Attributes:
        embedding: D.
        dropout: share of the buckets that is left out in training.
    """

    embedding: int = 192
    dropout: float = 0.4


class FiguresNetwork(NotesNetwork):
    r"""Figures, weighted by how rare they are, mapped linearly and centred.

    .. math:: e = \frac{W f + b - \mu}{\sigma}, \qquad f = \bigoplus_k \frac{g_k}{\lVert g_k \rVert}, \qquad
        g_{kv} = w_{kv} \sqrt{c_{kv}}, \qquad w_{kv} = \log \frac{M + 1}{m_{kv} + 1}

    :math:`c_{kv}` is how often a figure of bucket v of family k occurs, :math:`m_{kv}` in how many of M training tunes it does.
    :math:`\mu` and :math:`\sigma` are the mean and standard deviation of each coordinate over training tunes. Each family has
    length 1 in f: neither the length of a tune nor the number of its notes counts.
    """

    rarity: Tensor

    def __init__(self, config: FiguresConfig) -> None:
        super().__init__(config)
        self.register_buffer("rarity", torch.ones(BUCKETS))
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(BUCKETS, config.embedding)
        self.standard = nn.BatchNorm1d(config.embedding, affine=False)

    def forward(self, notes_NL3: Tensor) -> Tensor:
        """Notes of :func:`rows_of` to embeddings ``[N, D]``; zero for a tune without a figure."""
        figures_NF = self.figures(notes_NL3)
        heard_N1 = (figures_NF != 0).any(-1, keepdim=True)
        return self.standard(self.linear(self.dropout(figures_NF))) * heard_N1

    def figures(self, notes_NL3: Tensor) -> Tensor:
        """Weighted counts f, ``[N, all buckets]``."""
        weights = self.rarity.split([family.buckets for family in FAMILIES])
        parts = [
            normalize(counts_NV.sqrt() * weight_V, dim=-1)
            for counts_NV, weight_V in zip(counts_of(notes_NL3), weights, strict=True)
        ]
        return torch.cat(parts, -1)

    @torch.no_grad()
    def begin(self, tunes: Sequence[Sequence[Sounding]]) -> None:
        """Starts from latent semantic analysis (Deerwester et al. 1990): the rarity of each figure in the tunes, and the
        directions in which their figures vary most, divided by the root of their singular values."""
        present_V = torch.zeros(BUCKETS)
        for start in range(0, len(tunes), 256):
            counts = counts_of(rows_of(tunes[start : start + 256]))
            present_V += (torch.cat(counts, -1) > 0).sum(0)
        self.rarity.copy_(torch.log((len(tunes) + 1) / (present_V + 1)))
        figures_NF = torch.cat([self.figures(rows_of(tunes[at : at + 256])) for at in range(0, len(tunes), 256)])
        mean_F = figures_NF.mean(0)
        size = min(self.config.embedding, *figures_NF.shape)
        _, singular_D, directions_FD = torch.svd_lowrank(figures_NF - mean_F, q=size, niter=2)
        weight_FD = directions_FD / singular_D.sqrt()
        self.linear.weight.zero_()
        self.linear.weight[:size] = weight_FD.T / weight_FD.norm(dim=0).mean()
        self.linear.bias.copy_(-self.linear.weight @ mean_F)


def counts_of(notes_NL3: Tensor) -> list[Tensor]:
    """How often each figure occurs, one ``[N, V]`` float32 per family. Pitches enter as differences, times as multiples of the
    median length.

    Example:
        >>> from cfg_distill.tunes.canonical import sounding_notes
        >>> tunes = [sounding_notes("C:1 D:1 E:1"), sounding_notes("z:2 G:2 | A:2 z:1/12 B:2")]
        >>> counts = counts_of(rows_of(tunes))[0]
        >>> counts.sum(-1), (counts[0] == counts[1]).all()
        (tensor([3., 3.]), tensor(True))
    """
    notes_NL3 = _in_usual_lengths(notes_NL3)
    onset_NL, length_NL, pitch_NL = notes_NL3.unbind(-1)
    later = {}
    for place in {place for family in FAMILIES for places in family.places for place in places}:
        then_NL3 = pad(notes_NL3, (0, 0, 0, place), value=PADDING)[:, place:]
        then_NL, their_length_NL, their_pitch_NL = then_NL3.unbind(-1)
        time_NL = (then_NL - onset_NL + STEP // 2) // STEP
        interval_NL = (their_pitch_NL - pitch_NL).clamp(-WIDEST, WIDEST) + WIDEST
        there_NL = (onset_NL != PADDING) & (then_NL != PADDING) & (time_NL <= WINDOW)
        heard = {
            "melody": [time_NL, interval_NL],
            "rhythm": [time_NL],
            "lengths": [interval_NL, length_NL, their_length_NL, torch.full_like(time_NL, place)],
        }
        later[place] = (heard, there_NL)
    counts = []
    for family in FAMILIES:
        buckets, there = [], []
        for places in family.places:
            key_NL, all_NL = torch.zeros_like(onset_NL), torch.ones_like(onset_NL, dtype=torch.bool)
            for place in places:
                heard, there_NL = later[place]
                all_NL = all_NL & there_NL
                for value_NL in heard[family.hears]:
                    key_NL = (key_NL * 48271 + value_NL + 1) % PRIME
            buckets.append(key_NL % family.buckets)
            there.append(all_NL)
        counts_NV = torch.zeros(len(notes_NL3), family.buckets, device=notes_NL3.device)
        counts.append(counts_NV.scatter_add_(1, torch.cat(buckets, 1), torch.cat(there, 1).float()))
    return counts


def _in_usual_lengths(notes_NL3: Tensor) -> Tensor:
    """The notes with the tune's median length as an eighth, in whole ticks."""
    onset_NL, length_NL, pitch_NL = notes_NL3.unbind(-1)
    there_NL = onset_NL != PADDING
    usual_N1 = median_of(length_NL, there_NL).clamp(min=1)
    onset_NL, length_NL = (
        torch.where(there_NL, (ticks_NL * TICKS / usual_N1).round().long(), ticks_NL)
        for ticks_NL in (onset_NL, length_NL)
    )
    return torch.stack([onset_NL, length_NL, pitch_NL], -1)
