"""Plans held against measured peaks: each recipe runs for a few steps as a process, and its plan is made.

    python tests/benchmarks/plan_measured.py            all recipes below, on this CPU
    python tests/benchmarks/plan_measured.py lora sft   those whose name holds one of the words

It prints predicted and measured GB and their ratio. The measured peak is that of the process (``ru_maxrss``): libraries and
what the allocator cannot use are in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3

CASES: dict[str, list[str]] = {
    "tunes/quality": ["--config", "recipes/tunes/quality.yaml"],
    "tunes/quality, 16 prompts": ["--config", "recipes/tunes/quality.yaml", "--data.init_args.batch_size", "16"],
    "tunes/quality, micro-batch 8": ["--config", "recipes/tunes/quality.yaml", "--data.init_args.batch_size", "16",
                                     "--model.micro_batch", "8"],
    "tunes/diversity": ["--config", "recipes/tunes/diversity.yaml", "--model.start", ""],
    "tunes/lora_quality": ["--config", "recipes/tunes/lora_quality.yaml"],
    "tunes/sft": ["--config", "recipes/tunes/sft.yaml"],
    "smollm2/quality, 4 prompts": ["--config", "recipes/smollm2/quality.yaml", "--data.init_args.batch_size", "4"],
    "smollm2/quality, micro-batch 4": ["--config", "recipes/smollm2/quality.yaml", "--data.init_args.batch_size", "4",
                                       "--model.micro_batch", "4"],
    "tunes/lora_dial": ["--config", "recipes/tunes/lora_dial.yaml"],
    "tunes/lora_diversity": ["--config", "recipes/tunes/lora_diversity.yaml", "--model.start", ""],
    "tunes/quality, micro-batch 64": ["--config", "recipes/tunes/quality.yaml", "--data.init_args.batch_size", "32",
                                      "--model.micro_batch", "64"],
    "smollm2/diversity, micro-batch 4": ["--config", "recipes/smollm2/diversity.yaml", "--model.start", "",
                                         "--data.init_args.batch_size", "2", "--model.micro_batch", "4"],
    "smollm2/context, 4 prompts": ["--config", "recipes/smollm2/quality.yaml", "--config", "recipes/smollm2/context.yaml",
                                   "--data.init_args.batch_size", "4"],
    "smollm2, all weights": ["--config", "recipes/smollm2/quality.yaml", "--data.init_args.batch_size", "2",
                             "--model.generator.init_args.lora", "null", "--model.micro_batch", "8"],
}  # fmt: skip
"""Recipes that run quickly on a CPU, with their overrides. The first eight chose ``HEAP`` of planning/plan.py."""


def predicted(words: list[str]) -> float:
    """GB of the plan."""
    run = subprocess.run(
        [sys.executable, "-m", "cfg_distill.cli", "plan", *words, "--devices", "1", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return json.loads(run.stdout)["asked"]["peak"] / 1e9


def measured(words: list[str]) -> float:
    """GB at the peak of a fit of a few steps; of a validation too, where the recipe has one."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": STEPS, "val_check_interval": STEPS, "accelerator": "cpu", "default_root_dir": folder}
        options = [f"--trainer.{name}={value}" for name, value in settings.items()]
        process = subprocess.Popen(
            [sys.executable, "-m", "cfg_distill.cli", "fit", *words, *options], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"The fit of {' '.join(words)} failed.")
        return usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    wanted = sys.argv[1:]
    print(f"{'recipe':32}{'predicted':>12}{'measured':>12}{'ratio':>8}", flush=True)
    for name, words in CASES.items():
        if wanted and not any(word in name for word in wanted):
            continue
        plan = predicted(words)
        peak = measured(words)
        print(f"{name:32}{plan:>9.2f} GB{peak:>9.2f} GB{plan / peak:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
