"""The shipped tune encoder as an embedder. Shapes: N tunes, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cfg_distill.embedders.base import Embedder, texts_of
from cfg_distill.errors import Context, Problem
from cfg_distill.folders import problems_of_folder
from cfg_distill.tunes.canonical import is_degenerate
from cfg_distill.tunes.figures import FiguresNetwork, load_figures, problems_of_figures


class Tunes(Embedder):
    """Decoded tunes (music tokens separated by spaces) to unit vectors: parts of one tune lie close together.

    Transposition, octave and bar signs change nothing. The vector of a tune without a note is zero.

    Args:
        path: ``tunes:encoder``, or a folder that ``cfg-distill fit --config recipes/tunes/encoder.yaml`` wrote.
    """

    def __init__(self, path: str = "tunes:encoder") -> None:
        super().__init__()
        self.path = path
        self.network: FiguresNetwork | None = None

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = problems_of_folder(self.path) or problems_of_figures(self.path)
        return [problem.under("path") for problem in found]

    def load(self) -> Self:
        if self.network is None:
            self.network = load_figures(self.path)
        return self

    def embed(self, outputs: Sequence[str]) -> Tensor:
        network = self.load().network
        assert network is not None
        return normalize(network.read(texts_of(f"Embedder `{self.path}`", outputs)), dim=-1)

    def degenerate(self, outputs: Sequence[str]) -> Tensor:
        """Which tunes have too little melody, ``[N]`` bool: :func:`cfg_distill.tunes.canonical.is_degenerate`."""
        return torch.tensor(
            [is_degenerate(tune) for tune in texts_of(f"Embedder `{self.path}`", outputs)], dtype=torch.bool
        )
