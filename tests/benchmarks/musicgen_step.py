"""One training step of MusicGen at real size, random weights: seconds by phase, peak memory, rollouts against transformers.

    python tests/benchmarks/musicgen_step.py --size small --seconds 1 --prompts 2 --samples 4

Runs on a GPU when there is one. Prints a JSON object; a fresh process each time, since a peak of memory never falls.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from measure import now, use_threads
from real_size import FRAMES_PER_SECOND, musicgen
from transformers.utils import logging

from cfg_distill import CFGDistillation
from cfg_distill.generators import LoRA, MusicGen
from cfg_distill.guidance import Guidance
from cfg_distill.losses import ReverseKL
from cfg_distill.planning import device_of, fit_of, plan_of
from cfg_distill.recipe.resolved import Recipe
from cfg_distill.sampling import Sampling, rollout

GB = 1e9
SIZES = ("small", "medium", "large", "stereo-small", "stereo-medium", "stereo-large")
SCALE = 3.0
PROMPTS = ["80s synth pop", "calm jazz piano", "loud rock song", "noise", "pop", "piano", "jazz", "80s rock"]


class Phases:
    """Seconds spent in methods of objects, without those of others inside them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def watch(self, name: str, owner: Any, method: str) -> None:
        plain: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = now()
            self._inside.append(0.0)
            try:
                return plain(*args, **kwargs)
            finally:
                took = now() - began
                self.seconds[name] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        setattr(owner, method, timed)


def peak_bytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_step(generator: MusicGen, given: argparse.Namespace, device: str) -> dict[str, Any]:
    """The second of two steps, whose optimiser already has its moments."""
    model = CFGDistillation(
        generator,
        {"kl": ReverseKL()},
        Guidance(SCALE),
        Sampling(samples=given.samples, max_new_tokens=round(given.seconds * FRAMES_PER_SECOND)),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
        micro_batch=given.micro_batch,
        measure_gradients_every=0,
    )
    model.configure_model()
    phases = Phases()
    watched = [("rollout", model, "rollout"), ("decode", generator, "decode"), ("student forward", generator, "predictions"),
               ("loss and backward", model, "training_step"), ("loss and backward", model, "backward")]  # fmt: skip
    for name, owner, method in watched:
        phases.watch(name, owner, method)
    phases.watch("teacher", model.teacher, "predictions")
    walls: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_start(self, *rest: Any) -> None:
            phases.seconds.clear()
            self.began = now()

        def on_train_batch_end(self, *rest: Any) -> None:
            walls.append(now() - self.began)

    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, precision=given.precision, max_steps=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Clock()],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader([PROMPTS[: given.prompts]] * 2, batch_size=None))
    phases.seconds["optimiser and rest"] = walls[-1] - sum(phases.seconds.values())
    return {
        "step seconds": round(walls[-1], 1),
        "phases": {name: round(value, 2) for name, value in phases.seconds.items()},
    }


@torch.no_grad()
def tokens_a_second(generator: MusicGen, given: argparse.Namespace, device: str) -> dict[str, float]:
    """Rollouts, and transformers' generate with guidance of the same clips, both without the codec."""
    num_frames = round(given.seconds * FRAMES_PER_SECOND)
    prompts, group = PROMPTS[: given.prompts], given.samples
    cells = len(prompts) * group * num_frames * generator.num_codebooks
    sampling = Sampling(samples=group, max_new_tokens=num_frames)
    whole = generator.shared.to(generator.device).whole
    whole.decoder = generator.model
    whole.audio_encoder.decode = lambda codes, **rest: type("Sound", (), {"audio_values": codes})
    ids = generator.shared.tokenizer(
        [prompt for prompt in prompts for _ in range(group)], padding=True, return_tensors="pt"
    )
    inputs = {name: ids[name].to(generator.device) for name in ("input_ids", "attention_mask")}
    plain = {"do_sample": True, "top_k": 0, "guidance_scale": SCALE, "max_new_tokens": num_frames + 3}
    tokens = {"decoder_start_token_id": 2048, "pad_token_id": 2048, "bos_token_id": 2048}
    runs = {
        "rollout": lambda: rollout(generator, prompts, sampling),
        "rollout with guidance": lambda: rollout(generator, prompts, sampling, Guidance(SCALE)),
        "generate with guidance": lambda: whole.generate(**inputs, **plain, **tokens),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(4):
        for name, run in runs.items():
            began = now()
            # As Lightning's mixed precision does it: without a cache.
            with torch.autocast(device, torch.bfloat16, enabled=given.precision == "bf16-mixed", cache_enabled=False):
                run()
            rates[name].append(cells / (now() - began))
    del whole.decoder, whole.audio_encoder.decode
    # The first run is the warm-up.
    return {name: round(statistics.median(found[1:]), 1) for name, found in rates.items()}


def planned_bytes(given: argparse.Namespace) -> float:
    """The peak that ``cfg-distill plan`` computes for this step."""
    words = {
        "model.generator.path": f"facebook/musicgen-{given.size}", "model.generator.dtype": given.dtype,
        "model.generator.lora": {"rank": given.rank} if given.rank else None, "model.losses.diversity": None,
        "model.sampling.samples": given.samples, "model.micro_batch": given.micro_batch,
        "model.sampling.max_new_tokens": round(given.seconds * FRAMES_PER_SECOND), "data.batch_size": given.prompts,
        "trainer.precision": given.precision, "trainer.limit_val_batches": 0, "model.measure_gradients_every": 0,
        "trainer.callbacks.ema": None, "trainer.callbacks.diversity": None,
    }  # fmt: skip
    with fit_of(Recipe.read(["recipes/musicgen/small.yaml"], words)) as fit:
        return plan_of(fit, device_of(None, None, 1), 1).asked.peak


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = device == "cuda"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--seconds", type=float, default=10.0 if large else 1.0)
    parser.add_argument("--prompts", type=int, default=8 if large else 2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=0, help="of a LoRA; 0 trains all weights")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--precision", default="bf16-mixed" if large else "32-true")
    parser.add_argument("--rollouts", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")

    use_threads()
    planned = planned_bytes(given)  # first: a plan counts what its process holds as libraries
    generator = musicgen(given.size, device, dtype=given.dtype, lora=LoRA(rank=given.rank) if given.rank else None)
    rates = tokens_a_second(generator, given, device) if given.rollouts else {}
    at_start = peak_bytes(device)
    step = one_step(generator, given, device)
    name = torch.cuda.get_device_name() if large else f"{platform.processor() or platform.machine()} CPU"
    print(
        json.dumps(
            {
                "device": name, "threads": torch.get_num_threads(), **vars(given), **step, "tokens a second": rates,
                "peak GB": round(peak_bytes(device) / GB, 1), "peak GB before the fit": round(at_start / GB, 1),
                "computed GB": round(planned / GB, 1),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
