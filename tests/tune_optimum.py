"""What can the objective give at best? Its optimum on the tunes, by weighting samples of the guided model. Half an hour.

    python tests/tune_optimum.py --samples 64

The law that maximises beta E[k(y, y')] - KL(pi || guided), both expectations over the samples of one prompt, fulfils

    pi(y) = guided(y) exp(2 beta E_pi k(y, .)) / Z

So samples of the guided model, weighted by that exponential, are samples of the optimum, as long as the weights are not too
uneven (`effective`: the share of samples that still count). The samples of a prompt are split into three parts: two say how
novel a sample of the third is, and the third alone is measured, so no sample is called novel by chance and then counted as
diverse. Each row is a mean over the development prompts, with 1.96 standard errors of the difference from guidance 2.
Shapes: B prompts, N samples per prompt, A and C samples of a part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from cfg_distill.data import read_prompts
from cfg_distill.embedders import embedded
from cfg_distill.embedders.similarity import cosine_distances
from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import Samples, draw
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.metrics import TuneQuality
from cfg_distill.tunes.rewards import RealTune

PROMPTS = Path(__file__).parents[1] / "recipes/tunes/prompts/development.txt"
AT_ONCE, LONGEST, ROUNDS, STEPS, PARTS = 8, 128, 3, 30, 3
BETAS = (0.0, 1.0, 2.0, 3.0, 4.0)
ENCODERS = {"diversity": "tunes:encoder", "figures": "tunes:figures", "rhythms": "tunes:rhythms"}
COLUMNS = ("quality", "without real", *ENCODERS, "KL", "effective")
QUALITIES = {"quality": (), "without real": ("real",)}


def singly(samples: Samples) -> Samples:
    """The same samples as groups of one, so that a metric tells them apart."""
    asked = [prompt for prompt in samples.prompts for _ in range(samples.group)]
    return Samples(asked, samples.outputs, samples.rollout)


def read(scale: float, number: int, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values ``[B, N]`` and distances ``[B, N, N]`` of samples under a scale of guidance, by name."""
    generator, sampling = CausalLM("tunes:base").load(), Sampling(number, LONGEST)
    sticks = {name: TuneQuality(without=without).load() for name, without in QUALITIES.items()}
    listener = RealTune().load()
    encoders = {name: Tunes(path).load() for name, path in ENCODERS.items()}
    values: dict[str, list[Tensor]] = {}
    distances: dict[str, list[Tensor]] = {}
    for start in range(0, len(prompts), AT_ONCE):
        samples = draw(generator, prompts[start : start + AT_ONCE], sampling, Guidance(scale), seed=1000 + start)
        for name, stick in sticks.items():
            values.setdefault(name, []).append(stick.score(singly(samples)).unflatten(0, (-1, number)))
        values.setdefault("listener", []).append(listener.score(samples))
        for name, encoder in encoders.items():
            vectors_BND = embedded(encoder, samples.outputs).unflatten(0, (-1, number))
            distances.setdefault(name, []).append(cosine_distances(vectors_BND))
        print(f"guidance {scale}: {min(start + AT_ONCE, len(prompts))} of {len(prompts)} prompts", flush=True)
    return {name: torch.cat(each) for name, each in values.items()}, {
        name: torch.cat(each) for name, each in distances.items()
    }


def law(kernel_BNN: Tensor, beta: float, measured: Tensor, others: Tensor) -> Tensor:
    """The weights of the optimum on the measured samples, ``[B, C]``, from their novelty among the A others."""
    kernel_BAA = kernel_BNN[:, others][:, :, others]
    weight_BA = torch.full(kernel_BAA.shape[:2], 1 / len(others))
    for _ in range(STEPS):  # damped steps to the fixed point
        # A sample is no other sample: the pairs with itself, which count 0, are left out.
        novelty_BA = torch.einsum("bij,bj->bi", kernel_BAA, weight_BA) / (1 - weight_BA)
        weight_BA = (weight_BA + torch.softmax(2 * beta * novelty_BA, -1)) / 2
    kernel_BCA = kernel_BNN[:, measured][:, :, others]
    return torch.softmax(2 * beta * torch.einsum("bij,bj->bi", kernel_BCA, weight_BA), -1)


def optimum(
    kernel_BNN: Tensor, beta: float, values: dict[str, Tensor], distances: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What the law has of each value and distance, ``[B]`` by name."""
    number, found = kernel_BNN.shape[-1], []
    for seed in range(ROUNDS):
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        parts = [order[first::PARTS] for first in range(PARTS)]
        for held in range(PARTS):
            part, others = parts[held], torch.cat(parts[:held] + parts[held + 1 :])
            weight_BC = law(kernel_BNN, beta, part, others)
            pairs_B = 1 - weight_BC.square().sum(-1)  # the weight of all pairs of two samples
            row = {name: (weight_BC * value_BN[:, part]).sum(-1) for name, value_BN in values.items()}
            for name, distance_BNN in distances.items():
                distance_BCC = distance_BNN[:, part][:, :, part]
                row[name] = torch.einsum("bi,bij,bj->b", weight_BC, distance_BCC, weight_BC) / pairs_B
            row["KL"] = (weight_BC * (weight_BC * len(part)).log()).sum(-1)
            row["effective"] = 1 / weight_BC.square().sum(-1) / len(part)
            found.append(row)
    return {name: torch.stack([row[name] for row in found]).mean(0) for name in found[0]}


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


def cells(row: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, list[float]]:
    """The mean of each column, its difference from the start, and 1.96 standard errors of that."""
    found = {}
    for column, value_B in row.items():
        change_B = value_B - start[column]
        numbers = (value_B.mean(), change_B.mean(), 1.96 * change_B.std() / len(change_B) ** 0.5)
        found[column] = [round(float(number), 3) for number in numbers]
    return found


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """The table of docs/evidence.md: the means of the first law, and the differences of the others from it."""
    *paired, kl, effective = COLUMNS
    lines = ["| law | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for number, (name, row) in enumerate(rows.items()):
        shown = [f"{row[each][1]:+.3f} ±{row[each][2]:.3f}" if number else f"{row[each][0]:.3f}" for each in paired]
        shown += [f"{row[each][0]:.2f}" for each in (kl, effective)]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=64, help="of guidance 2, per prompt; half as many of the others")
    parser.add_argument("--out", type=Path, help="a JSON file to write the numbers to")
    given = parser.parse_args()
    if given.samples < 4 * PARTS:  # half of them in three parts: pairs need two samples in each
        parser.error(f"argument --samples: expected at least {4 * PARTS}, but got {given.samples}.")
    prompts = [str(prompt) for prompt in read_prompts(PROMPTS, "prompt")]
    values, distances = read(2.0, given.samples, prompts)
    paid = kernels(values, distances)
    start = optimum(paid["phrases"], 0.0, values, distances)
    rows = {"guidance 2": start}
    for name, kernel_BNN in paid.items():
        for beta in BETAS[1:]:
            rows[f"{name}, beta {beta:g}"] = optimum(kernel_BNN, beta, values, distances)
    for scale in (1.0, 1.5):
        drawn = read(scale, given.samples // 2, prompts)
        rows[f"guidance {scale:g}"] = optimum(drawn[1]["diversity"], 0.0, *drawn)
    numbers = {name: cells(row, start) for name, row in rows.items()}
    print(table(numbers))
    if given.out:
        given.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
