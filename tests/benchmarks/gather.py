"""What ``execution.gather`` costs: rollouts of sharded SmolLM2, its weights gathered once or at each position.

    python tests/benchmarks/gather.py                two processes of this CPU, or all GPUs
    python tests/benchmarks/gather.py --processes 4

Both ways train for a few steps in turn, as ``cfg-distill fit`` runs them. It prints the seconds of a rollout (the median of the
steps after the first) and the memory that it adds on one device, and whether the samples of the first step are the same. Later
ones differ where rounding turns a token.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measure import now

ROOT = Path(__file__).resolve().parents[2]
OUT = "CFG_DISTILL_GATHER_OUT"
MiB = 2**20


class Rollouts(L.Callback):
    """Times rollouts of the first process, and takes their peaks of memory."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module: Any = pl_module
        plain, found = module.rollout, []

        def timed(*args: Any, **kwargs: Any) -> Any:
            held, began = reset_peak(), now()
            drawn = plain(*args, **kwargs)
            found.append({"seconds": now() - began, "added": peak() - held, "sum": int(drawn.tokens_BGKT.sum())})
            if trainer.is_global_zero:
                Path(os.environ[OUT]).write_text(json.dumps(found))
            return drawn

        module.rollout = timed


def reset_peak() -> int:
    """Bytes that are held now; peaks are measured from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(AttributeError):  # glibc's own: memory that is free already would hide what a rollout takes
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    """Bytes that the kernel says of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measured(gather: str, given: argparse.Namespace) -> list[dict[str, float]]:
    """The rollouts of a fit."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model.execution.gather": gather, "model.generator.init_args.lora": "null", "model.micro_batch": 4,
            "model.sampling.samples": 4, "model.sampling.max_new_tokens": given.tokens, "data.init_args.batch_size": 1,
            "trainer.strategy": "fsdp2", "trainer.devices": given.processes, "trainer.max_steps": given.steps,
            "trainer.limit_val_batches": 0, "trainer.default_root_dir": folder,
            "trainer.callbacks.rollouts.class_path": "gather.Rollouts",
        }  # fmt: skip
        options = [f"--{name}={value}" for name, value in settings.items()]
        out = Path(folder, "rollouts.json")
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {OUT: str(out), "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "cfg_distill.cli", "fit", "--config", "recipes/smollm2/quality.yaml", *options]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=max(2, torch.cuda.device_count()))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    sums = []
    print(f"{'gather':10}{'a rollout':>12}{'it adds':>12}", flush=True)
    for gather in ("rollout", "layer"):
        found = measured(gather, given)
        seconds, added = (statistics.median(each[name] for each in found[1:]) for name in ("seconds", "added"))
        sums.append(found[0]["sum"])
        print(f"{gather:10}{seconds:>10.1f} s{added / MiB:>8.0f} MiB", flush=True)
    print(f"The samples of the first step {'are the same' if sums[0] == sums[1] else 'differ'}.")


if __name__ == "__main__":
    main()
