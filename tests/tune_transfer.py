"""Does the diversity that a reward buys show under other measures? The table of docs/evidence.md. Minutes.

    python tests/tune_transfer.py base=tunes:base guided=tunes:base@2 quality=FOLDER diversity=FOLDER
    python tests/tune_transfer.py --encoder FOLDER ...      # one more column: an encoder of an earlier version

Each model draws 8 samples of each development prompt at temperature 1. Differences from `quality` (or from the first model) are
paired over prompts, with 1.96 standard errors. The columns: the quality; the encoder of the reward; the judge, by the cosine
distance of its last hidden layer, which learned origin, rhythm, mode and "real", and was no reward; common melodies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cfg_distill.data import read_prompts
from cfg_distill.embedders.base import Embedder
from cfg_distill.errors import Context, Problem
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.metrics import PairwiseCosineDiversity, SampleMetric
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples, draw
from cfg_distill.tunes.canonical import is_degenerate
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.metrics import MelodicDiversity, TuneQuality
from cfg_distill.tunes.network import TuneNetwork, load_network

PROMPTS = Path(__file__).parents[1] / "recipes/tunes/prompts/development.txt"
GROUP, LONGEST, AT_ONCE = 8, 128, 24


class Features(Embedder):
    """A network of convolutions over tunes as an embedder: what a head gives, or what the heads read."""

    def __init__(self, path: str, hidden: bool = False) -> None:
        super().__init__()
        self.network: TuneNetwork = load_network(path)
        self.hidden = hidden
        self._read: Tensor
        next(iter(self.network.heads.values())).register_forward_pre_hook(self._keep)

    def _keep(self, head: object, given: tuple[Tensor]) -> None:
        self._read = given[0]

    def problems(self, context: Context = Context()) -> list[Problem]:
        return []

    def load(self) -> Self:
        return self

    @torch.no_grad()
    def embed(self, outputs: Sequence[str]) -> Tensor:
        given = next(iter(self.network(self.network.numbers_of(outputs)).values()))
        return normalize(self._read if self.hidden else given, dim=-1)

    def degenerate(self, outputs: Sequence[str]) -> Tensor:
        return torch.tensor([is_degenerate(tune) for tune in outputs], dtype=torch.bool)


def samples_of(model: str, prompts: Sequence[str]) -> list[Samples]:
    folder, _, scale = model.partition("@")
    generator, sampling, guidance = CausalLM(folder).load(), Sampling(GROUP, LONGEST), Guidance(float(scale or 1))
    starts = range(0, len(prompts), AT_ONCE)
    return [draw(generator, prompts[start : start + AT_ONCE], sampling, guidance, start) for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER[@GUIDANCE]")
    parser.add_argument("--encoder", help="folder of an encoder of convolutions")
    given = parser.parse_args()
    columns: dict[str, SampleMetric] = {
        "quality": TuneQuality(),
        "encoder of the reward": PairwiseCosineDiversity(embedder=Tunes()),
        "judge's hidden layer": PairwiseCosineDiversity(embedder=Features("tunes:judge", hidden=True)),
        "melodic": MelodicDiversity(),
    }
    if given.encoder:
        columns["earlier encoder"] = PairwiseCosineDiversity(embedder=Features(given.encoder))
    prompts = [str(prompt) for prompt in read_prompts(PROMPTS, "prompt")]
    scores: dict[str, dict[str, Tensor]] = {}
    for one in given.models:
        name, _, model = one.partition("=")
        drawn = samples_of(model, prompts)
        scores[name] = {
            column: torch.cat([metric.load().score(each) for each in drawn]) for column, metric in columns.items()
        }
        print(f"{name:16}", *(f"{column} {score.mean():.3f}" for column, score in scores[name].items()), sep="  ")
    first = "quality" if "quality" in scores else next(iter(scores))
    for name, by_column in scores.items():
        if name != first:
            differences = {column: by_column[column] - scores[first][column] for column in columns}
            cells = [
                f"{column} {each.mean():+.3f} ± {1.96 * each.std() / len(each) ** 0.5:.3f}"
                for column, each in differences.items()
            ]
            print(f"{name} - {first}:", *cells, sep="  ")


if __name__ == "__main__":
    main()
