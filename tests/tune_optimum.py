"""What can the objective give at best? Its optimum on the tunes, by weighting samples of the guided model. Half an hour.

    python tests/tune_optimum.py --samples 64

See tests/optimum.py for the formula. Each row is a mean over the development prompts.
Shapes: B prompts, N samples per prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from optimum import PARTS, Readings, cells, optimum, read, singly, table
from torch import Tensor

from cfg_distill.data import read_prompts
from cfg_distill.generators import CausalLM
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.metrics import TuneQuality
from cfg_distill.tunes.rewards import RealTune

PROMPTS = Path(__file__).parents[1] / "recipes/tunes/prompts/development.txt"
AT_ONCE, LONGEST = 8, 128
BETAS = (0.0, 1.0, 2.0, 3.0, 4.0)
ENCODERS = {"diversity": "tunes:encoder", "figures": "tunes:figures", "rhythms": "tunes:rhythms"}
COLUMNS = ("quality", "without real", *ENCODERS)
QUALITIES = {"quality": (), "without real": ("real",)}


def readings(scale: float, number: int, prompts: list[str]) -> Readings:
    """Values ``[B, N]`` and distances ``[B, N, N]`` of samples under a scale of guidance, by name."""
    sticks = {name: TuneQuality(without=without).load() for name, without in QUALITIES.items()}
    listener = RealTune().load()

    def values(samples: Samples) -> dict[str, Tensor]:
        single = singly(samples)
        scores = {name: stick.score(single).unflatten(0, (-1, number)) for name, stick in sticks.items()}
        return scores | {"listener": listener.score(samples)}

    encoders = {name: Tunes(path).load() for name, path in ENCODERS.items()}
    sampling = Sampling(number, LONGEST)
    return read(CausalLM("tunes:base").load(), scale, prompts, sampling, AT_ONCE, values, encoders)


def kernels(values: dict[str, Tensor], distances: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a reward pays for a pair: its distance, and its distance times how much music the two are."""
    both_BNN = (distances["diversity"] * distances["figures"]).clamp(min=0).sqrt()
    music_BN = values["listener"].square()
    music_BNN = (music_BN.unsqueeze(-1) + music_BN.unsqueeze(-2)) / 2
    return {
        "phrases": distances["diversity"],
        "phrases x figures": both_BNN,
        "phrases x figures x music": both_BNN * music_BNN / music_BN.mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=64, help="of guidance 2, per prompt; half as many of the others")
    parser.add_argument("--out", type=Path, help="a JSON file to write the numbers to")
    given = parser.parse_args()
    if given.samples < 4 * PARTS:  # half of them in three parts: pairs need two samples in each
        parser.error(f"argument --samples: expected at least {4 * PARTS}, but got {given.samples}.")
    prompts = [str(prompt) for prompt in read_prompts(PROMPTS, "prompt")]
    values, distances = readings(2.0, given.samples, prompts)
    paid = kernels(values, distances)
    start = optimum(paid["phrases"], 0.0, values, distances)
    rows = {"guidance 2": start}
    for name, kernel_BNN in paid.items():
        for beta in BETAS[1:]:
            rows[f"{name}, beta {beta:g}"] = optimum(kernel_BNN, beta, values, distances)
    for scale in (1.0, 1.5):
        drawn = readings(scale, given.samples // 2, prompts)
        rows[f"guidance {scale:g}"] = optimum(drawn[1]["diversity"], 0.0, *drawn)
    numbers = {name: cells(row, start) for name, row in rows.items()}
    print(table(numbers, COLUMNS))
    if given.out:
        given.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
