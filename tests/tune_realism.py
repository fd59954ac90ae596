"""How far are samples from real tunes, under measures that no reward listens to? Minutes.

    python tests/tune_realism.py "guidance 2=tunes:base@2" base=tunes:base "diversity=FOLDER,FOLDER,FOLDER" --out FILE.json

The unbiased kernel distance (KAD, arXiv 2502.15602, times 100) between all samples and held-out tunes that have what the
prompts ask for. Lower is better: loops, rubbish and sameness raise it; copied tunes do not. Three sets of vectors: counts of
pairs of tokens and counts of melodic figures, neither of which was trained, and `tunes:rhythms`, which is no reward.
Differences from the first system are paired over prompts (jackknife), with 1.96 standard errors; several folders are training
seeds of one system.
Shapes: P prompts, G samples per prompt, N samples, R real tunes, D width.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tune_transfer import samples_of

from cfg_distill.data import read_prompts
from cfg_distill.embedders import NGramCounts
from cfg_distill.metrics.corpus import jackknife, kernel_distance
from cfg_distill.references.kernels import mean_kernel_within, median_distance
from cfg_distill.tunes.canonical import sounding_notes
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.figures import counts_of
from cfg_distill.tunes.ladder import looped, shuffled_bars
from cfg_distill.tunes.notes import rows_of
from cfg_distill.tunes.rungs import HELD_OUT, TuneLadder

PROMPTS = Path(__file__).parents[1] / "recipes/tunes/prompts/report_96.txt"
REAL = 4
"""Held-out tunes of a prompt that stand for real music, and as many others that are measured beside the samples."""


def figures(tunes: Sequence[str]) -> Tensor:
    """Counts of melodic figures, each family at length 1, ``[N, D]``."""
    counts = counts_of(rows_of([sounding_notes(tune) for tune in tunes]))
    return torch.cat([normalize(family_NV.sqrt(), dim=-1) for family_NV in counts], -1)


SPACES: dict[str, Callable[[Sequence[str]], Tensor]] = {
    "pairs of tokens": lambda tunes: normalize(NGramCounts(2, buckets=2048).embed(tunes).sqrt(), dim=-1),
    "figures": figures,
    "rhythms": Tunes("tunes:rhythms").load().embed,
}


def distance(vectors: Tensor, reference: Tensor) -> Tensor:
    """The distance of ``[P, G, D]`` from ``[R, D]`` as one number per prompt, ``[P]``."""
    bandwidth = median_distance(reference)
    within = mean_kernel_within(reference, bandwidth)
    return jackknife(vectors, reference, lambda *sets: 100 * kernel_distance(*sets, bandwidth, within))


def distances(tunes: Sequence[str], prompts: int, references: dict[str, Tensor]) -> dict[str, Tensor]:
    """The distance of tunes, those of one prompt together, by space."""
    return {
        name: distance(space(tunes).unflatten(0, (prompts, -1)), references[name]) for name, space in SPACES.items()
    }


def degenerate(prompts: Sequence[str], ladder: TuneLadder) -> dict[str, list[str]]:
    """Loops and shuffled bars of the training tunes, as many per prompt as there are real ones: what the measure must see."""
    random, made = Random(0), {"one bar, looped": looped, "common bars, shuffled": shuffled_bars}
    known = [ladder.tunes(prompt, ["train"]) for prompt in prompts]
    return {
        name: [tune for pool in known for tune in maker(random.choices(pool, k=REAL), random)]
        for name, maker in made.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER[@GUIDANCE][,FOLDER...]")
    parser.add_argument("--samples", type=int, default=12, help="of each folder and prompt")
    parser.add_argument("--out", type=Path, help="a JSON file to write the numbers to")
    given = parser.parse_args()
    ladder = TuneLadder()
    asked = [str(prompt) for prompt in read_prompts(PROMPTS, "prompt")]
    held = {prompt: ladder.tunes(prompt, HELD_OUT) for prompt in asked}
    prompts = [prompt for prompt in asked if len(held[prompt]) >= 2 * REAL and ladder.tunes(prompt, ["train"])]
    print(f"{len(prompts)} of {len(asked)} prompts have {2 * REAL} held-out tunes or more.", flush=True)
    chosen = [Random(0).sample(held[prompt], 2 * REAL) for prompt in prompts]
    real = [tune for tunes in chosen for tune in tunes[:REAL]]
    references = {name: space(real) for name, space in SPACES.items()}
    groups = {"other held-out tunes": [tune for tunes in chosen for tune in tunes[REAL:]]} | degenerate(prompts, ladder)
    rows = {name: distances(tunes, len(prompts), references) for name, tunes in groups.items()}
    for one in given.models:
        name, _, models = one.partition("=")
        seeds = []
        for model in models.split(","):
            drawn = samples_of(model, prompts, given.samples, seed=5000)
            tunes = [tune for part in drawn for tune in part.outputs]
            seeds.append(distances(tunes, len(prompts), references))
        rows[name] = {space: torch.stack([seed[space] for seed in seeds]).mean(0) for space in SPACES}
        for number, seed in enumerate(seeds):
            print(name, number, {space: round(float(each.mean()), 3) for space, each in seed.items()}, flush=True)
    first = given.models[0].partition("=")[0]
    numbers = {
        name: {
            space: [
                round(float(each), 4) for each in (value.mean(), change.mean(), 1.96 * change.std() / len(value) ** 0.5)
            ]
            for space, value in row.items()
            for change in [value - rows[first][space]]
        }
        for name, row in rows.items()
    }
    print(table(numbers, first))
    if given.out:
        given.out.write_text(json.dumps({"first": first, "rows": numbers}, indent=1) + "\n", encoding="utf-8")


def table(numbers: dict[str, dict[str, list[float]]], first: str) -> str:
    """The table of docs/evidence.md: the distance of each system, and its difference from the first one's."""
    lines = ["| system | " + " | ".join(SPACES) + " |", "|---" * (len(SPACES) + 1) + "|"]
    for name, row in numbers.items():
        cells = [
            f"{mean:.2f}" if name == first else f"{mean:.2f} ({change:+.2f} ±{error:.2f})"
            for mean, change, error in row.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
