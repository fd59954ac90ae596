"""How much of a system message a student has learnt that never reads it: the table of docs/text.md.

    cfg-distill fit --config recipes/smollm2/context.yaml
    cfg-distill export --checkpoint runs/context/version_0/checkpoints/last.ckpt --out adapters/context
    python tests/context_study.py adapters/context

Three systems are sampled at temperature 1 on the prompts of the report: the base, the base with the message (prompting), and
the student without it. Of each: the share of samples with a word of the sea; the information on the message, log p(y | prompt,
message) - log p(y | prompt) under the base, in nats per token; the tokens of the longest prompt. Intervals are 1.96 standard
errors over prompts.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import torch
import yaml
from torch import Tensor

from cfg_distill.data import read_prompts
from cfg_distill.folders import base_of, find_file
from cfg_distill.generators import Generator, Guidance, open_generator
from cfg_distill.metrics.likelihood import log_likelihood
from cfg_distill.prompt import PromptLike
from cfg_distill.sampling import Samples, Sampling, Seeds, draw

RECIPE, PROMPTS = "recipes/smollm2/context.yaml", "recipes/smollm2/prompts/report.txt"
SEA = re.compile(
    r"\b(sea|seas|ship|ships|storm|storms|ocean|sail\w*|waves?|crew|captain|harbou?r|deck|tides?)\b", re.IGNORECASE
)
AT_ONCE = 8


def told(values_P: Tensor) -> str:
    return f"{values_P.mean():.3f} ±{1.96 * values_P.std() / len(values_P) ** 0.5:.3f}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapter")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    recipe = yaml.safe_load(find_file(RECIPE).read_text(encoding="utf-8"))
    guidance = Guidance(teacher_system=recipe["model"]["guidance"]["teacher_system"])
    base, student = open_generator(base_of(given.adapter)).load(), open_generator(given.adapter).load()
    plain, sampling = read_prompts(PROMPTS), Sampling(given.samples, given.tokens)
    rich = guidance.of_teacher(plain)
    print(f"{'system':24}", *(f"{name:>16}" for name in ("sea words", "information")), "longest prompt")
    for name, model, prompts in (
        ("base", base, plain),
        ("base with the message", base, rich),
        ("student", student, plain),
    ):
        words, information = [], []
        for start in range(0, len(plain), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            samples = draw(model, prompts[part], sampling, seed=Seeds((0,), range(start, start + len(prompts[part]))))
            words += [sum(bool(SEA.search(text)) for text in group) / len(group) for group in samples.groups()]
            information += list(_information(base, samples, plain[part], rich[part]))
        shown = told(torch.tensor(words)), told(torch.stack(information))
        print(f"{name:24}", *(f"{each:>16}" for each in shown), model.prompt_positions(prompts), flush=True)


def _information(base: Generator, samples: Samples, plain: Sequence[PromptLike], rich: Sequence[PromptLike]) -> Tensor:
    """Nats per token that the message explains, by prompt."""
    tokens, mask = samples.rollout.tokens_NKT, samples.rollout.mask_NKT
    with_it, without = (log_likelihood(base.predictions(each, tokens, mask), tokens, mask) for each in (rich, plain))
    totals_PG = (with_it - without).view(len(plain), -1)
    return totals_PG.sum(1) / mask.sum((1, 2)).view(len(plain), -1).sum(1)


if __name__ == "__main__":
    main()
