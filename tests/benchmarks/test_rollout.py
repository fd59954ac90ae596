"""Rollouts against transformers' generate: `make bench`. Ratios of medians of interleaved runs in one process."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import pytest
import torch

from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout

PROMPTS = ["an Irish jig", "a Scottish reel", "an American hornpipe in G major", "a slip jig in D major"] * 2
SAMPLES, LENGTH, RUNS = 4, 96, 5

pytestmark = pytest.mark.bench


def theirs(generator: CausalLM, scale: float) -> int:
    """The same samples by transformers: each prompt repeated for its group, guidance by its own processor."""
    encoded = generator.encode([prompt for prompt in PROMPTS for _ in range(SAMPLES)]).tensors
    guided = {}
    if scale != 1:
        negative = generator.encode([None] * len(encoded["input_ids"])).tensors
        guided = {
            "guidance_scale": scale,
            "negative_prompt_ids": negative["input_ids"],
            "negative_prompt_attention_mask": negative["attention_mask"],
        }
    output = generator.model.generate(
        **encoded, **guided, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=LENGTH
    )
    new = output[:, encoded["input_ids"].shape[1] :]
    return int((new != generator.pad_token).sum())


def ours(generator: CausalLM, scale: float) -> int:
    drawn = rollout(generator, PROMPTS, Sampling(samples=SAMPLES, max_new_tokens=LENGTH), Guidance(scale))
    return int(drawn.mask_BGKT.sum())


def test_tokens_a_second() -> None:
    torch.manual_seed(0)
    generator = CausalLM("tunes:base").load().eval()
    rates: dict[tuple[str, float], list[float]] = {}
    for run in range(RUNS + 1):
        for scale in (1.0, 2.0):
            for name, sample in (("ours", ours), ("generate", theirs)):
                began = time.perf_counter()
                tokens = sample(generator, scale)
                if run:  # the first warms up
                    rates.setdefault((name, scale), []).append(tokens / (time.perf_counter() - began))
    median = {key: statistics.median(values) for key, values in rates.items()}
    table = {
        "rollout, against generate": median["ours", 1.0] / median["generate", 1.0],
        "rollout with guidance, against generate with guidance_scale": median["ours", 2.0] / median["generate", 2.0],
        "rollout without guidance, against with": median["ours", 1.0] / median["ours", 2.0],
    }
    print(
        f"\n{len(PROMPTS)} prompts x {SAMPLES} samples x {LENGTH} tokens, tunes:base, {torch.get_num_threads()} threads"
    )
    for name, ratio in table.items():
        print(f"{ratio:6.2f}x tokens a second  {name}")
    out = Path("runs/benchmarks/rollout.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(table, indent=1) + "\n")
    assert min(table.values()) > 1
