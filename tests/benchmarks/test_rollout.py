"""Rollouts against transformers' generate, and sampling a student against sampling its guided base."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from floor import Recorded
from measure import (
    DEVICE,
    LENGTH,
    MODEL,
    PRECISION,
    PROMPTS,
    SAMPLES,
    SCALE,
    Row,
    has_bfloat16,
    interleaved,
    now,
    report,
    use_threads,
)

from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout

pytestmark = pytest.mark.bench


def generate(generator: CausalLM, prompts: Sequence[str], samples: int, scale: float) -> int:
    """Tokens that transformers samples: each prompt repeated for its group, guidance by its own processor."""
    encoded = generator.encode([prompt for prompt in prompts for _ in range(samples)]).tensors
    guided = {}
    if scale != 1:
        negative = generator.encode([None] * len(encoded["input_ids"])).tensors
        guided = {
            "guidance_scale": scale,
            "negative_prompt_ids": negative["input_ids"],
            "negative_prompt_attention_mask": negative["attention_mask"],
        }
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "max_new_tokens": LENGTH}
    output = generator.model.generate(**encoded, **guided, **settings)
    end_tokens = torch.tensor(generator.end_tokens, device=output.device)
    ends = torch.isin(output[:, encoded["input_ids"].shape[1] :], end_tokens).cumsum(-1)
    return int((ends == 0).sum() + (ends[:, -1] > 0).sum())


def ours(generator: CausalLM, prompts: Sequence[str], samples: int, scale: float, pack: bool = True) -> int:
    """Tokens of a rollout."""
    sampling = Sampling(samples=samples, max_new_tokens=LENGTH, pack_weights=pack)
    return int(rollout(generator, prompts, sampling, Guidance(scale)).mask_BGKT.sum())


def mixed(generator: CausalLM, prompts: Sequence[str], samples: int, scale: float, pack: bool = True) -> int:
    """Tokens of a rollout of float32 weights under bf16-mixed, as Lightning's precision makes it: without a cache."""
    with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
        return ours(generator, prompts, samples, scale, pack)


@torch.no_grad()
def test_rollouts() -> None:
    use_threads()
    torch.manual_seed(0)
    generator = CausalLM(MODEL, dtype=PRECISION).load().eval().to(DEVICE)
    sides: dict[tuple, tuple] = {
        (name, rows, scale): (sample, PROMPTS[: -(-rows // SAMPLES)], min(rows, SAMPLES), scale)
        for rows in (1, 2, 4, 16, 32)
        for scale in (1.0, SCALE)
        for name, sample in (("ours", ours), ("generate", generate))
        if name == "ours" or rows in (16, 32)
    }

    trained = CausalLM(MODEL).load().eval().to(DEVICE) if PRECISION != "float32" else generator
    has_mixed = has_bfloat16()  # else its two sides take half an hour
    for pack in (True, False) if has_mixed else ():
        sides["mixed", pack] = partial(mixed, pack=pack), PROMPTS, SAMPLES, 1.0

    floors: dict[tuple, tuple[Recorded, int]] = {}
    for rows in (16, 32):
        for scale in (1.0, SCALE):
            sample, *given = sides["ours", rows, scale]
            with Recorded() as recorded:
                floors["floor", rows, scale] = recorded, sample(generator, *given)

    def a_token(key: tuple) -> float:
        if key in floors:
            recorded, tokens = floors[key]
            return recorded.seconds() / tokens
        sample, prompts, samples, scale = sides[key]
        began = now()
        tokens = sample(trained if "mixed" in key else generator, prompts, samples, scale)
        return (now() - began) / tokens

    seconds = interleaved({key: lambda key=key: a_token(key) for key in [*sides, *floors]})

    def row(what: str, fast: tuple, against: str, slow: tuple, bar: float, aim: float) -> Row:
        details = f"{1 / seconds[fast]:.0f} : {1 / seconds[slow]:.0f} tokens a second"
        return Row(what, against, seconds[slow] / seconds[fast], bar, aim, False, details)

    rows = []
    for size in (16, 32):
        rows += [
            row(f"rollout, {size} rows", ("ours", size, 1.0), "generate", ("generate", size, 1.0), 1.8, 2.0),
            row(
                f"rollout with guidance, {size} rows",
                ("ours", size, SCALE),
                "guidance_scale",
                ("generate", size, SCALE),
                2.2,
                2.5,
            ),
        ]
    for _, size, scale in floors:
        # No implementation is below it: where it takes more than 1 / 1.8 of `generate`, the bar of 1.8 is out of reach.
        seconds_of = [seconds[side, size, scale] for side in ("ours", "floor", "generate")]
        what = f"rollout{' with guidance' if scale != 1 else ''}, {size} rows"
        details = "{:.1f} : {:.1f} ms a token; generate: {:.1f} ms".format(*(1e3 * each for each in seconds_of))
        rows.append(Row(what, "its matrix products alone", seconds_of[0] / seconds_of[1], 1.7, 1.35, True, details))
    for size in (1, 2, 4, 16, 32):
        rows.append(
            row(f"student, {size} rows", ("ours", size, 1.0), "base + guidance", ("ours", size, SCALE), 1.6, 1.9)
        )
    if has_mixed:
        cast_once = row("rollout of float32 weights under bf16-mixed", ("mixed", True), "the same, cast at every position",
                        ("mixed", False), 1.0, 1.3)  # fmt: skip
        rows.append(cast_once)
    report("rollout", rows, f"Rollouts of {LENGTH} tokens, SmolLM2-135M")
