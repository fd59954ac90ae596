"""The optimum of an objective by weighting samples of its guided model, for tests/tune_optimum.py and tests/text_optimum.py.

The law that maximises beta E[k(y, y')] - KL(pi || guided), both expectations over the samples of one prompt, fulfils

    pi(y) = guided(y) exp(2 beta E_pi k(y, .)) / Z

So samples of the guided model, weighted by that exponential, are samples of the optimum, as long as the weights are not too
uneven (`effective`: the share of samples that still count). The samples of a prompt are split into three parts: two say how
novel a sample of the third is, and the third alone is measured, so no sample is called novel by chance and then counted as
diverse. Each row is a mean over prompts, with 1.96 standard errors of its difference from the first row.
Shapes: B prompts, N samples per prompt, A and C samples of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cfg_distill.embedders import Embedder, embedded
from cfg_distill.embedders.similarity import cosine_distances
from cfg_distill.generators import Predictor
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.rollout import Rollout
from cfg_distill.sampling.samples import Samples, draw

ROUNDS, STEPS, PARTS = 3, 30, 3
Readings = tuple[dict[str, Tensor], dict[str, Tensor]]


def singly(samples: Samples) -> Samples:
    """The same samples as groups of one, so that a metric tells them apart."""
    drawn = samples.rollout
    apart = (each.unsqueeze(1) for each in (drawn.tokens_NKT, drawn.mask_NKT, drawn.log_probs_NKT))
    asked = [prompt for prompt in samples.prompts for _ in range(samples.group)]
    return Samples(asked, samples.outputs, Rollout(*apart))


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Dictionaries of tensors as one, along the first dimension."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def read(
    predictor: Predictor,
    scale: float,
    prompts: Sequence[str],
    sampling: Sampling,
    at_once: int,
    values: Callable[[Samples], dict[str, Tensor]],
    encoders: Mapping[str, Embedder],
) -> Readings:
    """Values ``[B, N]`` and distances ``[B, N, N]`` of samples under a scale of guidance, by name.

    Args:
        predictor, scale, prompts, sampling: who draws what.
        at_once: prompts of one rollout.
        values: the values of a few prompts' samples, ``[b, N]`` by name.
        encoders: under which samples are compared, by name.
    """
    found: list[dict[str, Tensor]] = []
    distances: list[dict[str, Tensor]] = []
    for start in range(0, len(prompts), at_once):
        samples = draw(predictor, prompts[start : start + at_once], sampling, Guidance(scale), seed=1000 + start)
        found.append(values(samples))
        vectors = {name: embedded(encoder, samples.outputs) for name, encoder in encoders.items()}
        distances.append(
            {name: cosine_distances(each_ND.unflatten(0, (-1, sampling.samples))) for name, each_ND in vectors.items()}
        )
        print(f"guidance {scale:g}: {min(start + at_once, len(prompts))} of {len(prompts)} prompts", flush=True)
    return joined(found), joined(distances)


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


def cells(row: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, list[float]]:
    """The mean of each column, its difference from the start, and 1.96 standard errors of that."""
    found = {}
    for column, value_B in row.items():
        change_B = value_B - start[column]
        numbers = (value_B.mean(), change_B.mean(), 1.96 * change_B.std() / len(change_B) ** 0.5)
        found[column] = [round(float(number), 3) for number in numbers]
    return found


def table(rows: dict[str, dict[str, list[float]]], columns: Sequence[str]) -> str:
    """A table of the documentation: the means of the first law, and the differences of the others from it."""
    lines = ["| law | " + " | ".join(columns) + " | KL | effective |", "|---" * (len(columns) + 3) + "|"]
    for number, (name, row) in enumerate(rows.items()):
        shown = [f"{row[each][1]:+.3f} ±{row[each][2]:.3f}" if number else f"{row[each][0]:.3f}" for each in columns]
        shown += [f"{row[each][0]:.2f}" for each in ("KL", "effective")]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
