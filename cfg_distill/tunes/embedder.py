"""The shipped encoders of tunes as embedders. Shapes: N tunes, D embedding width."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cfg_distill.embedders.base import Embedder, texts_of
from cfg_distill.errors import Context, Problem
from cfg_distill.folders import problems_of_folder
from cfg_distill.tunes.canonical import is_degenerate
from cfg_distill.tunes.encoder import load_encoder, problems_of_encoder
from cfg_distill.tunes.network import SavedNetwork, load_network


class _NetworkOfTunes(Embedder):
    """Decoded tunes to unit vectors by a network of this room, which is loaded when the first tunes come."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.network: SavedNetwork | None = None

    @abstractmethod
    def _loaded(self) -> SavedNetwork:
        """The network of the folder."""

    def problems(self, context: Context = Context()) -> list[Problem]:
        return [problem.under("path") for problem in problems_of_folder(self.path)]

    def load(self) -> Self:
        if self.network is None:
            self.network = self._loaded()
        return self

    def embed(self, outputs: Sequence[str]) -> Tensor:
        network = self.load().network
        assert network is not None
        with torch.autocast(next(network.parameters()).device.type, enabled=False):  # a fit may ask in bfloat16
            return normalize(network.hear(self._texts(outputs)), dim=-1)

    def degenerate(self, outputs: Sequence[str]) -> Tensor:
        """Which tunes have too little melody, ``[N]`` bool: :func:`cfg_distill.tunes.canonical.is_degenerate`."""
        return torch.tensor([is_degenerate(tune) for tune in self._texts(outputs)], dtype=torch.bool)

    def _texts(self, outputs: Sequence[str]) -> Sequence[str]:
        return texts_of(f"Embedder `{self.path}`", outputs)


class Tunes(_NetworkOfTunes):
    """Decoded tunes (music tokens separated by spaces) to unit vectors: parts of one tune lie close together.

    Transposition, octave and bar signs change nothing. The vector of a tune without a note is zero.

    Args:
        path: ``tunes:encoder``, ``tunes:figures``, or a folder that ``cfg-distill fit --config recipes/tunes/encoder.yaml`` or
            ``.../figures.yaml`` wrote.
    """

    def __init__(self, path: str = "tunes:encoder") -> None:
        super().__init__(path)

    def problems(self, context: Context = Context()) -> list[Problem]:
        return super().problems(context) or [problem.under("path") for problem in problems_of_encoder(self.path)]

    def _loaded(self) -> SavedNetwork:
        return load_encoder(self.path)


class Judged(_NetworkOfTunes):
    """Decoded tunes to unit vectors of what the heads of the judge read: its last hidden layer.

    The judge learned origin, rhythm, mode and whether a tune is music. As a measure of diversity it is a guard at most: other
    bar signs move a tune farther than another tune is (docs/tunes.md).

    Args:
        path: ``tunes:judge``, or a folder that ``cfg-distill fit --config recipes/tunes/judge.yaml`` wrote.
    """

    def __init__(self, path: str = "tunes:judge") -> None:
        super().__init__(path)

    def _loaded(self) -> SavedNetwork:
        return load_network(self.path)
