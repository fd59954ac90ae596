"""MusicGen small at real size, random weights: `make bench`. One process a measurement; see musicgen_step.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.musicgen_sizes import FRAMES_A_SECOND, SIZES, T5_AND_CODEC, Size, configuration, memory, real_size
from transformers import MusicgenForCausalLM

from cfg_distill.generators import HiddenStates

pytestmark = pytest.mark.bench
SCRIPT = Path(__file__).with_name("musicgen_step.py")


def measured(*words: str) -> dict:
    run = subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True, text=True)
    result = json.loads(run.stdout.strip().splitlines()[-1])
    out = Path("runs/benchmarks/musicgen.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as lines:
        lines.write(json.dumps(result) + "\n")
    print(json.dumps(result, indent=1))
    return result


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_counted_right(name: str) -> None:
    with torch.device("meta"):
        decoder = MusicgenForCausalLM(configuration(SIZES[name]).decoder)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == SIZES[name].parameters


@pytest.mark.parametrize("mixed", [False, True])
def test_what_autograd_keeps_is_counted_right(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula of scoring against the storages that a forward pass of two layers saves."""
    rows, frames = 4, 200
    monkeypatch.setitem(SIZES, "short", Size(2, 1024, 16))
    generator = real_size("short").eval()
    tokens_NKT = torch.randint(0, 2048, (rows, 4, frames + 3))
    weights = {parameter.untyped_storage().data_ptr() for parameter in generator.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        scored = generator.predictions(["rock"], tokens_NKT, torch.ones_like(tokens_NKT).bool())
    saved = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    computed = memory(SIZES["short"], frames / FRAMES_A_SECOND, rows, mixed=mixed)
    assert isinstance(scored, HiddenStates)
    assert 0.9 < computed.scoring / saved < 1.1


def test_the_frozen_parts_are_counted_right() -> None:
    whole = real_size("small").shared.whole
    assert sum(parameter.numel() for parameter in whole.parameters()) == pytest.approx(T5_AND_CODEC, rel=0.01)


def test_a_step_that_trains_all_weights() -> None:
    result = measured()
    assert result["tokens a second"]["rollout"] > result["tokens a second"]["generate with guidance"]
    assert 0.7 < result["computed GB"] / result["peak GB"] < 1.1


def test_a_step_that_trains_an_adapter() -> None:
    result = measured("--rank", "16", "--no-rollouts")
    assert 0.5 < result["computed GB"] / result["peak GB"] < 1.1
