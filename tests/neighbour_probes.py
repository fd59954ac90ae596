"""Two claims of docs/neighbours.md that are about samples alone: nothing is trained here.

    python tests/neighbour_probes.py select                 # minutes: 8 of 32 samples, chosen by likelihood or by density
    python tests/neighbour_probes.py codes runs/neighbours  # minutes: siblings with four codes against siblings with one

Both print a table over the 43 development prompts, with samples of 80 tokens and one sampling seed. Differences are paired
over prompts, and over the training seeds of the students, with their 95 % intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cfg_distill.data import read_prompts
from cfg_distill.embedders import Embedder, NGramCounts, embedded
from cfg_distill.embedders.similarity import cosine_distances
from cfg_distill.evaluation.front import bootstrap_interval
from cfg_distill.generators import CausalLM, Prompt
from cfg_distill.metrics import LogProbability
from cfg_distill.metrics.referred import PseudoDensity
from cfg_distill.recipe import Recipe
from cfg_distill.references import pseudo_density
from cfg_distill.sampling import Codes, Samples, Sampling, draw
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.metrics import TuneQuality
from cfg_distill.tunes.reference import TuneReference

PROMPTS = read_prompts("recipes/tunes/prompts/development.txt", "prompt")
TOKENS = 80
CHOSEN = 8
AT_ONCE = 8
"""Prompts."""
EMBEDDERS: dict[str, Embedder] = {"encoder": Tunes(), "figures": Tunes("tunes:figures"), "bigrams": NGramCounts(n=2)}


def drawn(model: CausalLM, prompts: Sequence[Prompt], samples: int, codes: Codes | None = None) -> Iterator[Samples]:
    for first in range(0, len(prompts), AT_ONCE):
        sampling = Sampling(samples=samples, max_new_tokens=TOKENS)
        yield draw(model, prompts[first : first + AT_ONCE], sampling, seed=1000 + first, conditioner=codes)


def variety(outputs: Sequence[str], embedder: Embedder) -> float:
    """The mean distance of a group's pairs."""
    return float(cosine_distances(embedded(embedder, outputs)).sum() / (len(outputs) * (len(outputs) - 1)))


def told(values: np.ndarray) -> str:
    mean, low, high = bootstrap_interval(values)
    text = f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()])


def select() -> str:
    """Pseudo Density (arXiv 2407.08659): choosing by density moves diversity further than choosing by likelihood."""
    base = CausalLM("tunes:base").load()
    likelihood = LogProbability(base).load()
    reference = TuneReference(split="train", tokens=TOKENS, match="slots", at_least=11)
    crowding, quality = PseudoDensity(EMBEDDERS["encoder"], reference).load(), TuneQuality().load()
    found: dict[str, list[list[float]]] = {}
    for samples in drawn(base, [Prompt.of(prompt) for prompt in PROMPTS], 4 * CHOSEN):
        embedding_BGD = crowding.embedded(samples)
        banks = crowding.banks.of(samples.asked, *crowding.referred(samples, embedding_BGD.shape[-1]))
        density_BG = torch.stack([pseudo_density(*each) for each in zip(embedding_BGD, banks, strict=True)])
        log_prob_BG = likelihood.per_token(samples, with_prompt=True)
        groups = zip(samples.prompts, samples.groups(), density_BG, log_prob_BG, strict=True)
        for prompt, outputs, density_G, log_prob_G in groups:
            orders = {
                "the first 8": torch.arange(len(outputs)),
                "least likely": log_prob_G.argsort(),
                "likeliest": (-log_prob_G).argsort(),
                "least crowded": density_G.argsort(),
                "most crowded": (-density_G).argsort(),
            }
            for name, order_G in orders.items():
                chosen = [outputs[place] for place in order_G[:CHOSEN].tolist()]
                (value,) = quality.score(replace(samples, prompts=[prompt], outputs=chosen, asked=[])).tolist()
                values = [value, *(variety(chosen, each) for each in EMBEDDERS.values())]
                found.setdefault(name, []).append(values)
    control, *others = {name: np.array(rows) for name, rows in found.items()}.items()
    rows = {control[0]: [f"{mean:.3f}" for mean in control[1].mean(0)]}
    rows |= {name: [told(column) for column in (values - control[1]).T] for name, values in others}
    rows["least crowded - least likely"] = [
        told(column) for column in (np.array(found["least crowded"]) - np.array(found["least likely"])).T
    ]
    return table(["8 of 32", "quality", *EMBEDDERS], rows)


def codes(study: Path) -> str:
    """VOLTA (arXiv 2307.00852): siblings with different codes differ more than siblings with one, and the base's do not."""
    volta = Recipe.read(["recipes/tunes/diversity.yaml", "recipes/tunes/neighbours/volta.yaml"])
    given = Codes(**volta.at("model.conditioner.init_args"))
    gaps = {
        "students": np.stack([_gap(str(path), given) for path in sorted((study / "students/volta").glob("seed *"))]),
        "base": _gap("tunes:base", given)[None],
    }
    gaps["students - base"] = gaps["students"] - gaps["base"]
    rows = {name: [told(gap_RPE[..., [place]]) for place in range(len(EMBEDDERS))] for name, gap_RPE in gaps.items()}
    return table(["four codes - one code", *EMBEDDERS], rows)


def _gap(model: str, given: Codes) -> np.ndarray:
    """Variety of four siblings with four codes, less the mean of four siblings with one, over all codes: ``[P, E]``."""
    generator = CausalLM(model).load()
    prompts = [Prompt.of(prompt) for prompt in PROMPTS]

    def varieties(asked: Sequence[Prompt], of: Codes | None = None) -> np.ndarray:
        groups = [group for samples in drawn(generator, asked, given.values, of) for group in samples.groups()]
        return np.array([[variety(group, embedder) for embedder in EMBEDDERS.values()] for group in groups])

    one = [varieties([Prompt(each.text, **{given.condition: word}) for each in prompts]) for word in given.words]
    return varieties(prompts, given) - np.mean(one, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("select")
    kinds.add_parser("codes").add_argument("study", type=Path)
    asked = parser.parse_args()
    for embedder in EMBEDDERS.values():
        embedder.load()
    print(select() if asked.kind == "select" else codes(asked.study))


if __name__ == "__main__":
    main()
