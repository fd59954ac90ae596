"""Does the diversity that a reward buys show under other measures? The table of docs/evidence.md. Minutes.

    python tests/tune_transfer.py base=tunes:base guided=tunes:base@2 quality=FOLDER diversity=FOLDER

Each model draws 8 samples of each development prompt at temperature 1. Differences from `quality` (or from the first model) are
paired over prompts, with 1.96 standard errors. The columns: the quality; the encoder of the reward; and three measures that
were no reward: the encoder of counted figures, the last hidden layer of the judge, and common melodies. Pitch alone and
rhythm alone tell where a difference comes from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cfg_distill.data import read_prompts
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.metrics import PairwiseCosineDiversity, SampleMetric
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples, draw
from cfg_distill.tunes.embedder import Judged, Tunes
from cfg_distill.tunes.metrics import MelodicDiversity, TuneQuality

PROMPTS = Path(__file__).parents[1] / "recipes/tunes/prompts/development.txt"
GROUP, LONGEST, AT_ONCE = 8, 128, 24


def samples_of(model: str, prompts: Sequence[str], group: int = GROUP, seed: int = 0) -> list[Samples]:
    """Samples of a model, FOLDER or FOLDER@GUIDANCE, in parts of some prompts."""
    folder, _, scale = model.partition("@")
    generator, sampling, guidance = CausalLM(folder).load(), Sampling(group, LONGEST), Guidance(float(scale or 1))
    starts = range(0, len(prompts), AT_ONCE)
    return [draw(generator, prompts[start : start + AT_ONCE], sampling, guidance, seed + start) for start in starts]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER[@GUIDANCE]")
    given = parser.parse_args()
    columns: dict[str, SampleMetric] = {
        "quality": TuneQuality(),
        "encoder of the reward": PairwiseCosineDiversity(embedder=Tunes()),
        "figures": PairwiseCosineDiversity(embedder=Tunes("tunes:figures")),
        "judge's hidden layer": PairwiseCosineDiversity(embedder=Judged()),
        "melodic": MelodicDiversity(),
        "pitch alone": MelodicDiversity("pitch"),
        "rhythm alone": MelodicDiversity("rhythm"),
    }
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
