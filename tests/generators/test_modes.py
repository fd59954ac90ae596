"""Eval mode after loading, and what a rollout leaves behind: dropout is on only where somebody asked for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder
from tiny_dia import tiny_dia
from tiny_musicgen import tiny_musicgen

from cfg_distill.generators import CausalLM, Dia, Generator, LoRA, MusicGen
from cfg_distill.sampling import Sampling, rollout

SAMPLING = Sampling(samples=2, max_new_tokens=6)
MAKE: dict[str, tuple[Callable[[Path], Generator], str]] = {
    "musicgen": (lambda folder: MusicGen(tiny_musicgen(folder)), "rock"),  # transformers' own dropout of 0.1
    "causal": (lambda folder: CausalLM(tiny_folder(folder), lora=LoRA(rank=2, dropout=0.5)), "w1 w2"),
    "dia": (lambda folder: Dia(tiny_dia(folder), lora=LoRA(rank=2, dropout=0.5)), "[S1] hi"),
}


def modes(generator: Generator) -> list[bool]:
    return [module.training for module in generator.modules()]


@pytest.mark.parametrize("kind", MAKE)
def test_a_generator_that_was_loaded_and_sampled_from_has_no_dropout(kind: str, tmp_path: Path) -> None:
    make, prompt = MAKE[kind]
    generator = make(tmp_path).load()
    assert not any(modes(generator))
    drawn = rollout(generator, [prompt], SAMPLING)
    assert not any(modes(generator))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "lora_B" in name:  # else the adapter is zero, and its dropout unseen
                parameter.normal_()
        first, second = (generator.logits([prompt], drawn.tokens_NKT, drawn.mask_NKT) for _ in range(2))
        assert torch.equal(first, second)
        generator.train()
        third = generator.logits([prompt], drawn.tokens_NKT, drawn.mask_NKT)
    assert not torch.equal(first, third), "no dropout in this model: the test shows nothing"


@pytest.mark.parametrize("kind", MAKE)
def test_a_rollout_restores_the_mode_of_every_part(kind: str, tmp_path: Path) -> None:
    make, prompt = MAKE[kind]
    generator = make(tmp_path).load().train()
    for module in list(generator.modules())[::3]:
        module.training = False
    before = modes(generator)
    assert len(set(before)) == 2
    seen: list[bool] = []
    called = next(module for module in generator.model.modules() if isinstance(module, torch.nn.Embedding))
    hook = called.register_forward_pre_hook(lambda *_: seen.extend(modes(generator)))
    rollout(generator, [prompt], SAMPLING)
    hook.remove()
    assert seen and not any(seen)
    assert modes(generator) == before
    called.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        rollout(generator, [prompt], SAMPLING)
    assert modes(generator) == before
    assert generator.load() is generator and modes(generator) == before  # loaded already: nothing changes


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
