"""One adapter for every gamma, beside dedicated adapters and LITI: the table of docs/lora.md.

    python tests/dial_study.py --out runs/dial                   # the tunes, about 15 minutes on two cores
    python tests/dial_study.py --out runs/dial --steps 40 --data.batch_size=4 --model.sampling.max_new_tokens=48   # smaller
    python tests/dial_study.py --out runs/dial --measure         # the table of fits that are there already
    python tests/dial_study.py --out runs/dial_text --recipe recipes/smollm2/quality.yaml --steps 40 \
        --prompts recipes/smollm2/prompts/validation.txt --tokens 48

A dialled student is fitted up to the largest gamma, and one dedicated student at each gamma: the same recipe, seed, steps
and samples. LITI is the dedicated student of the largest gamma, its adapter scaled as the dial is. Each is sampled at
temperature 1. KL(student || guided base) is the mean over the tokens that the student drew, in nats. The interval is 1.96
standard errors over prompts; all columns share the prompts and the random numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cfg_distill.cli import main
from cfg_distill.data import read_prompts
from cfg_distill.folders import base_of
from cfg_distill.generators import Generator, Guidance, Guided, open_generator
from cfg_distill.losses import reverse_kl
from cfg_distill.prompt import PromptLike
from cfg_distill.sampling import Sampling, Seeds, rollout

GAMMAS = (1.25, 1.5, 2.0, 3.0)
AT_ONCE = 8


@torch.no_grad()
def kl_per_prompt(
    student: Generator, base: Generator, gamma: float, prompts: Sequence[PromptLike], sampling: Sampling, seed: int = 0
) -> Tensor:
    """KL(student || guided base) per token, of samples of the student: one mean per prompt."""
    teacher, found = Guided(base, Guidance(gamma)), []
    for start in range(0, len(prompts), AT_ONCE):
        batch = list(prompts[start : start + AT_ONCE])
        drawn = rollout(student, batch, sampling, seed=Seeds((seed,), range(start, start + len(batch))))
        asked = batch, drawn.tokens_NKT, drawn.mask_NKT
        own_NKTV, guided_NKTV = student.predictions(*asked).whole(), teacher.predictions(*asked).whole()
        for b in range(len(batch)):
            rows = slice(b * sampling.samples, (b + 1) * sampling.samples)
            total, count = reverse_kl(own_NKTV[rows], guided_NKTV[rows], drawn.mask_NKT[rows])
            found.append(total / count)
    return torch.stack(found)


def fit(recipe: str, folder: Path, steps: int, more: Sequence[str]) -> Path:
    """Fit and export one adapter, unless it is there already."""
    adapter = folder / "adapter"
    if not adapter.is_dir():
        words = [
            "--trainer.limit_val_batches=0",
            f"--trainer.max_steps={steps}",
            f"--trainer.default_root_dir={folder}",
        ]
        assert main(["fit", "--config", recipe, *words, *more]) == 0
        (checkpoint,) = folder.glob("**/last.ckpt")
        assert main(["export", "--checkpoint", str(checkpoint), "--out", str(adapter)]) == 0
    return adapter


def told(values_P: Tensor) -> str:
    return f"{values_P.mean():.4f} ±{1.96 * values_P.std() / len(values_P) ** 0.5:.4f}"


def study() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="recipes/tunes/lora_quality.yaml")
    parser.add_argument("--prompts", default="recipes/tunes/prompts/development.txt")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--power", type=float, default=1.0, help="of the dial")
    parser.add_argument("--measure", action="store_true", help="fit nothing")
    given, overrides = parser.parse_known_args()  # further options are those of the fits
    highest = max(GAMMAS)
    fits = {f"gamma {gamma:g}": [f"--model.guidance.scale={gamma}"] for gamma in GAMMAS}
    fits["dial"] = [f"--model.guidance.scale={highest}", f"--model.dial={{power: {given.power}}}"]
    adapters = {name: given.out / name / "adapter" for name in fits}
    if not given.measure:
        adapters = {
            name: fit(given.recipe, given.out / name, given.steps, [*more, *overrides]) for name, more in fits.items()
        }
    prompts, sampling = read_prompts(given.prompts), Sampling(given.samples, given.tokens)
    base = open_generator(base_of(adapters["dial"])).load()
    print(f"{'gamma':>6}", *(f"{name:>16}" for name in ("base", "dialled", "dedicated", "LITI")), "dialled/dedicated")
    for gamma in GAMMAS:
        dial = (gamma - 1) / (highest - 1)
        students = {
            "base": base,
            "dialled": open_generator(str(adapters["dial"]), dial).load(),
            "dedicated": open_generator(str(adapters[f"gamma {gamma:g}"])).load(),
            "LITI": open_generator(str(adapters[f"gamma {highest:g}"]), dial).load(),
        }
        found = {name: kl_per_prompt(each, base, gamma, prompts, sampling) for name, each in students.items()}
        ratio = float(found["dialled"].mean() / found["dedicated"].mean())
        print(f"{gamma:6g}", *(f"{told(values):>16}" for values in found.values()), f"{ratio:.2f}", flush=True)


if __name__ == "__main__":
    study()
