"""What can the objective give at best on SmolLM2? Its optimum by weighting guided samples. Half an hour.

    python tests/text_optimum.py --samples 16 --keep runs/text_optimum

See tests/optimum.py for the formula. Each law is guidance 2 under a reward for texts that differ, beside guidance 1.5, which
the claims of recipes/smollm2/study_soup.yaml are about. Two rewards: the distance under MiniLM, and the distance times how
likely the two texts are to the base. Shapes: B prompts, N samples per prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from optimum import PARTS, Readings, cells, optimum, read, singly, table
from torch import Tensor

from cfg_distill.data import read_prompts
from cfg_distill.embedders import TransformerEmbedder, WordCounts
from cfg_distill.generators import CausalLM
from cfg_distill.metrics import Degeneration, LogProbability, PromptAdherence, SampleMetric, Substance
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples

PROMPTS = Path(__file__).parents[1] / "recipes/smollm2/prompts/validation.txt"
AT_ONCE, LONGEST = 2, 48
BETAS = (2.0, 4.0, 6.0, 10.0, 16.0)
COLUMNS = ("substance", "diversity", "words", "log-probability", "adherence", "degeneration")
UNLIKELY, LIKELY = -5.0, -2.5
"""Mean log-probabilities per token between which a text's likelihood rises from 0 to 1."""


def readings(scale: float, number: int, prompts: list[str]) -> Readings:
    """Values ``[B, N]`` and distances ``[B, N, N]`` of samples under a scale of guidance, by name."""
    judge, minilm = CausalLM("text:smollm2", chat_template=True), TransformerEmbedder("text:minilm")
    sticks: dict[str, SampleMetric] = {
        "substance": Substance(judge, batch_size=number).load(),
        "log-probability": LogProbability(judge, batch_size=number).load(),
        "adherence": PromptAdherence(minilm).load(),
        "degeneration": Degeneration(),
    }

    def values(samples: Samples) -> dict[str, Tensor]:
        single = singly(samples)
        return {name: stick.score(single).float().unflatten(0, (-1, number)) for name, stick in sticks.items()}

    encoders = {"diversity": minilm.load(), "words": WordCounts(n=1).load()}
    generator = CausalLM("text:smollm2", chat_template=True).load()
    return read(generator, scale, prompts, Sampling(number, LONGEST), AT_ONCE, values, encoders)


def kept(folder: Path | None, scale: float, number: int, prompts: list[str]) -> Readings:
    """The same, from a folder that an earlier run wrote, or written there."""
    file = folder and folder / f"guidance {scale:g}, {number}.pt"
    if file and file.is_file():
        found: Readings = torch.load(file, weights_only=True)
        return found
    fresh = readings(scale, number, prompts)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(fresh, file)
    return fresh


def kernels(values: dict[str, Tensor], distances: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a reward pays for a pair: its distance, and its distance times how likely the two are."""
    likely_BN = ((values["log-probability"] - UNLIKELY) / (LIKELY - UNLIKELY)).clamp(0, 1)
    likely_BNN = (likely_BN.unsqueeze(-1) + likely_BN.unsqueeze(-2)) / 2
    return {
        "MiniLM": distances["diversity"],
        "MiniLM x likelihood": distances["diversity"] * likely_BNN / likely_BN.mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=16, help="per prompt")
    parser.add_argument("--keep", type=Path, help="a folder for what was read, so that a run that was stopped goes on")
    parser.add_argument("--out", type=Path, help="a JSON file to write the numbers to")
    given = parser.parse_args()
    if given.samples < 2 * PARTS:  # in three parts: pairs need two samples in each
        parser.error(f"argument --samples: expected at least {2 * PARTS}, but got {given.samples}.")
    prompts = [str(prompt) for prompt in read_prompts(PROMPTS, "prompt")]
    rows: dict[str, dict[str, Tensor]] = {}
    for scale in (1.5, 1.0, 2.0):
        values, distances = kept(given.keep, scale, given.samples, prompts)
        rows[f"guidance {scale:g}"] = optimum(distances["diversity"], 0.0, values, distances)
    for name, kernel_BNN in kernels(values, distances).items():
        for beta in BETAS:
            rows[f"guidance 2, {name}, beta {beta:g}"] = optimum(kernel_BNN, beta, values, distances)
    numbers = {name: cells(row, rows["guidance 1.5"]) for name, row in rows.items()}
    print(table(numbers, COLUMNS))
    if given.out:
        given.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
