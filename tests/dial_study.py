"""One adapter for every gamma, beside dedicated adapters and LITI: the table of docs/lora.md.

    python tests/dial_study.py --out runs/dial                   # the tunes, about half an hour on two cores
    python tests/dial_study.py --out runs/dial --steps 40 --data.batch_size=4 --model.sampling.max_new_tokens=48   # smaller
    python tests/dial_study.py --out runs/dial --measure         # the table of fits that are there already
    python tests/dial_study.py --out runs/dial_text --recipe recipes/smollm2/quality.yaml --steps 40 --power 0.5 \
        --prompts recipes/smollm2/prompts/validation.txt --samples 4 --tokens 48 --data.batch_size=4   # two hours on two cores

A dialled student of each power is fitted up to the largest gamma, and one dedicated student at each gamma: the same recipe,
seed, steps and samples. LITI is the dedicated student of the largest gamma, its adapter scaled as the dial is. Each is sampled
at temperature 1. KL(student || guided base) is the mean over the tokens that the student drew, in nats. The second table has
the dialled student's KL minus that of the others. Intervals are 1.96 standard errors over prompts; all columns share the
prompts and the random numbers, so those of differences are paired. What is measured is kept in OUT/kl.json, and not measured
again: the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--recipe", default="recipes/tunes/lora_dial.yaml")
    parser.add_argument("--prompts", default="recipes/tunes/prompts/development.txt")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--power", type=float, nargs="+", default=[1.0, 0.5], help="of the dials, a student each")
    parser.add_argument("--measure", action="store_true", help="fit nothing")
    given, overrides = parser.parse_known_args()  # further options are those of the fits
    highest = max(GAMMAS)
    dials = {f"dial {power:g}": power for power in given.power}
    fits = {f"gamma {gamma:g}": [f"--model.guidance.scale={gamma}", "--model.dial=null"] for gamma in GAMMAS}
    for name, power in dials.items():
        fits[name] = [f"--model.guidance.scale={highest}", f"--model.dial={{power: {power}}}"]
    adapters = {name: given.out / name / "adapter" for name in fits}
    if not given.measure:
        for name, more in fits.items():
            fit(given.recipe, given.out / name, given.steps, [*more, *overrides])
    prompts, sampling = read_prompts(given.prompts), Sampling(given.samples, given.tokens)
    base = open_generator(base_of(adapters[f"gamma {highest:g}"])).load()
    found: dict[float, dict[str, Tensor]] = {}
    kept = given.out / "kl.json"
    known: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    print("gamma", *(f"{name:>16}" for name in ("base", "dedicated", "LITI", *dials)))
    for gamma in GAMMAS:
        setting = (gamma - 1) / (highest - 1)
        students = {
            "base": (str(base.path), None),
            "dedicated": (str(adapters[f"gamma {gamma:g}"]), None),
            "LITI": (str(adapters[f"gamma {highest:g}"]), setting),
            **{name: (str(adapters[name]), setting) for name in dials},
        }
        for name, (path, scale) in students.items():
            if (key := f"{name} at {gamma:g}") not in known:
                student = open_generator(path, scale).load()
                known[key] = kl_per_prompt(student, base, gamma, prompts, sampling).tolist()
                kept.write_text(json.dumps(known))
        found[gamma] = {name: torch.tensor(known[f"{name} at {gamma:g}"]) for name in students}
        print(f"{gamma:5g}", *(f"{told(values):>16}" for values in found[gamma].values()), flush=True)
    for name in dials:
        print(f"\n{name} - dedicated, over dedicated, - LITI")
        for gamma, kls in found.items():
            own, dedicated = kls[name], kls["dedicated"]
            ratio = float(own.mean() / dedicated.mean())
            print(f"{gamma:5g} {told(own - dedicated):>16} {ratio:16.2f} {told(own - kls['LITI']):>16}")


if __name__ == "__main__":
    study()
