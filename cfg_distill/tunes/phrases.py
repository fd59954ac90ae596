"""The network under the tune encoder: convolutions over the notes that sound, as a listener hears them in any key.

A note is heard as its interval from the note before, its distance in time from it, its length, and its height above the middle
of the tune. The unit of time is the median length of the tune's notes. So neither the key, the octave, the note values nor the
bar signs can reach the network.

Shapes: N tunes, L notes, C channels, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu

from cfg_distill.tunes.network import Block
from cfg_distill.tunes.notes import PADDING, WIDEST, NotesNetwork, median_of

DOUBLINGS = 4  # of the median length; a longer time counts as this, a shorter one as its inverse
HIGHEST = 18  # semitones above or below the median pitch of a tune; a note beyond counts as this


@dataclass
class PhrasesConfig:
    """Everything but the weights.

    Attributes:
        embedding: D.
        dropout: in training.
        width, blocks, kernel: of the convolutions; block b looks at every 2^b-th note.
        shades: how many times are told apart within a doubling.
    """

    embedding: int = 128
    dropout: float = 0.1
    width: int = 96
    blocks: int = 5
    kernel: int = 5
    shades: int = 4


class PhrasesNetwork(NotesNetwork):
    """Dilated convolutions over notes, mean over the tune, one linear map, each coordinate standardised over training tunes."""

    def __init__(self, config: PhrasesConfig) -> None:
        super().__init__(config)
        width, longest = config.width, DOUBLINGS * config.shades
        self.interval = nn.Embedding(2 * WIDEST + 2, width)  # the last one: the first note has none
        self.time = nn.Embedding(2 * longest + 2, width)  # the last one: the first note has none
        self.length = nn.Embedding(2 * longest + 1, width)
        self.height = nn.Embedding(2 * HIGHEST + 1, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.kernel, 2**depth, config.dropout) for depth in range(config.blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(2 * width, config.embedding)
        self.standard = nn.BatchNorm1d(config.embedding, affine=False)

    def forward(self, notes_NL3: Tensor) -> Tensor:
        """Notes of :func:`cfg_distill.tunes.notes.rows_of` to embeddings ``[N, D]``; zero for a tune of less than two notes."""
        there_NL = notes_NL3[..., 0] != PADDING
        mask_NL1 = there_NL.unsqueeze(-1).float()
        interval_NL, time_NL, length_NL, height_NL = heard(notes_NL3, self.config.shades)
        hidden_NLC = self.interval(interval_NL) + self.time(time_NL) + self.length(length_NL) + self.height(height_NL)
        hidden_NLC = self.dropout(hidden_NLC)
        for block in self.blocks:
            hidden_NLC = block(hidden_NLC, mask_NL1)
        hidden_NLC = gelu(self.hidden(self.norm(hidden_NLC))) * mask_NL1
        pooled_NC = self.dropout(hidden_NLC.sum(1) / mask_NL1.sum(1).clamp(min=1.0))
        return self.standard(self.linear(pooled_NC)) * (there_NL.sum(-1, keepdim=True) > 1)


def heard(notes_NL3: Tensor, shades: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Interval, distance in time, length and height of each note, as indices from 0 on, each ``[N, L]``.

    Example:
        >>> from cfg_distill.tunes.canonical import sounding_notes
        >>> from cfg_distill.tunes.notes import rows_of
        >>> low, high = (heard(rows_of([sounding_notes(tune)]), 4) for tune in ("C:1 E:2 C:1", "z:1 F:2 | A:4 || F:2"))
        >>> all((one == other).all() for one, other in zip(low, high)), [part.tolist() for part in low][2]
        (True, [[16, 20, 16]])
    """
    onset_NL, length_NL, pitch_NL = notes_NL3.unbind(-1)
    there_NL = onset_NL != PADDING
    interval_NL = (pitch_NL - pitch_NL.roll(1, -1)).clamp(-WIDEST, WIDEST) + WIDEST
    usual_N1 = median_of(length_NL, there_NL).clamp(min=1)
    time_NL = _scale((onset_NL - onset_NL.roll(1, -1)) / usual_N1, shades)
    interval_NL[:, 0], time_NL[:, 0] = 2 * WIDEST + 1, 2 * DOUBLINGS * shades + 1
    height_NL = (pitch_NL - median_of(pitch_NL, there_NL)).clamp(-HIGHEST, HIGHEST) + HIGHEST
    return interval_NL, time_NL, _scale(length_NL / usual_N1, shades), height_NL


def _scale(ratio_NL: Tensor, shades: int) -> Tensor:
    """Ratios of times on a scale of doublings, 1 in its middle."""
    longest = DOUBLINGS * shades
    return (shades * ratio_NL.clamp(min=2.0**-DOUBLINGS).log2()).round().long().clamp(-longest, longest) + longest
