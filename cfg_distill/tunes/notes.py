"""Notes of tunes as integers, and what networks over them share.

Shapes: N tunes, L notes, D embedding width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from cfg_distill.tunes.canonical import Sounding, sounding_notes
from cfg_distill.tunes.network import SavedNetwork

TICKS = 12  # per eighth: a length of the corpus is a whole number of them
PADDING = -1  # as an onset
STEP = TICKS // 2  # distances in time are rounded to half an eighth
WIDEST = 12  # semitones; a wider interval counts as this


def rows_of(tunes: Iterable[Sequence[Sounding]]) -> Tensor:
    """Notes of tunes as integers ``[N, L, 3]``: onset and length in ticks, pitch; padded with the onset :data:`PADDING`."""
    rows = [
        torch.tensor(
            [(round(n.onset * TICKS), round(n.length * TICKS), n.pitch) for n in notes], dtype=torch.long
        ).reshape(-1, 3)
        for notes in tunes
    ]
    longest = max([1, *map(len, rows)])
    return torch.stack([pad(notes_L3, (0, 0, 0, longest - len(notes_L3)), value=PADDING) for notes_L3 in rows])


def median_of(values_NL: Tensor, there_NL: Tensor) -> Tensor:
    """The median over the notes of each tune, ``[N, 1]``, the lower one of two; 0 for a tune without notes."""
    known_NL = values_NL.float().masked_fill(~there_NL, torch.nan)
    return known_NL.nanmedian(-1, keepdim=True).values.nan_to_num(0).long()


class NotesNetwork(SavedNetwork):
    """Notes of :func:`rows_of` to embeddings ``[N, D]``.

    Args:
        config: everything but the weights, a dataclass with a field ``embedding``, which is D.
    """

    @abstractmethod
    def forward(self, notes_NL3: Tensor) -> Tensor:
        """Embeddings ``[N, D]``; zero for a tune with too few notes."""

    def begin(self, tunes: Sequence[Sequence[Sounding]]) -> None:
        """Sets what the training starts from, for a network that takes it from the training tunes."""

    @torch.no_grad()
    def hear(self, tunes: Sequence[str], batch: int = 64) -> Tensor:
        """Embeddings of decoded tunes in evaluation mode, ``[N, D]``; tunes of like length are computed together."""
        was_training = self.training
        self.eval()
        device = next(self.parameters()).device
        notes = [sounding_notes(tune) for tune in tunes]
        embedding_ND = torch.zeros(len(tunes), self.config.embedding, device=device)
        order = sorted(range(len(tunes)), key=lambda index: len(notes[index]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            embedding_ND[chosen] = self(rows_of([notes[index] for index in chosen]).to(device)).float()
        self.train(was_training)
        return embedding_ND
