"""The shipped tune encoder as an embedder. Shapes: N tunes, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor
from torch.nn.functional import normalize

from cfg_distill.embedders.base import Embedder, texts_of
from cfg_distill.errors import Context, Problem
from cfg_distill.folders import problems_of_folder
from cfg_distill.tunes.network import TuneNetwork, load_network


class Tunes(Embedder):
    """Decoded tunes (music tokens separated by spaces) to unit vectors: segments of one tune lie close together.

    Args:
        path: ``tunes:encoder``, or a folder that ``cfg-distill fit --config recipes/tunes/encoder.yaml`` wrote.
    """

    def __init__(self, path: str = "tunes:encoder") -> None:
        super().__init__()
        self.path = path
        self.network: TuneNetwork | None = None

    def problems(self, context: Context = Context()) -> list[Problem]:
        return [problem.under("path") for problem in problems_of_folder(self.path)]

    def load(self) -> Self:
        if self.network is None:
            self.network = load_network(self.path)
        return self

    def embed(self, outputs: Sequence[str]) -> Tensor:
        network = self.load().network
        assert network is not None
        return normalize(network.read(texts_of(f"Embedder `{self.path}`", outputs))["embedding"], dim=-1)
