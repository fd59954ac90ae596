"""A dry run of a few blocks and chunks against that of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_folder
from tiny_dia import tiny_dia
from tiny_musicgen import tiny_musicgen
from torch import nn

from cfg_distill import CFGDistillation
from cfg_distill.distillation.execution import Execution
from cfg_distill.generators import CausalLM, Dia, Generator, LoRA, MusicGen
from cfg_distill.guidance import Guidance
from cfg_distill.losses import CrossEntropy, ReverseKL
from cfg_distill.planning import depth
from cfg_distill.planning.depth import counted, highest, peaks_of
from cfg_distill.planning.dry import Ledger, dry
from cfg_distill.planning.fit import Fit
from cfg_distill.planning.step import DryStep, Phase
from cfg_distill.sampling import Sampling

DEEP = 8
PROMPTS = ["w1 w2 w3 w4", "w5 w6"]


def deep(folder: str, *part: str) -> str:
    """The folder, whose network (or a part of its config) now has more blocks."""
    file = Path(folder) / "config.json"
    config = own = json.loads(file.read_text())
    for name in part:
        own = own[name]
    own["num_hidden_layers"] = DEEP
    own.pop("layer_types", None)
    file.write_text(json.dumps(config))
    return folder


def causal(folder: Path, **settings: Any) -> Generator:
    return CausalLM(deep(tiny_folder(folder)), **settings)


KINDS: dict[str, Callable[[Path], Generator]] = {
    "causal": causal,
    "lora": lambda folder: causal(folder, dtype="bfloat16", lora=LoRA(rank=2)),
    "musicgen": lambda folder: MusicGen(deep(tiny_musicgen(folder), "decoder")),
    "dia": lambda folder: Dia(deep(tiny_dia(folder), "decoder_config")),
}


def phases(generator: Generator, micro_batch: int, precision: str, off_policy: bool) -> list[Phase]:
    module = CFGDistillation(
        generator,
        {"loss": CrossEntropy() if off_policy else ReverseKL()},
        Guidance(3.0),
        Sampling(samples=4, max_new_tokens=10),
        off_policy=off_policy,
        execution=Execution(logits_chunk=300),
        micro_batch=micro_batch,
    )
    fit = Fit("tiny", module, list(PROMPTS), 0, precision, "auto", 1, False, {}, data=0, notes=[])
    with dry():
        step = DryStep(fit, on_cpu=True)
        return [step.rollout(fit.prompts), step.scoring(micro_batch)]


@pytest.mark.parametrize(
    ("kind", "micro_batch", "precision", "off_policy"),
    [
        pytest.param("causal", 8, "32-true", False, marks=pytest.mark.slow),
        pytest.param("lora", 4, "bf16-mixed", False, marks=pytest.mark.slow),
        pytest.param("musicgen", 4, "32-true", False, marks=pytest.mark.slow),
        pytest.param("dia", 8, "bf16-mixed", True, marks=pytest.mark.slow),
    ],
)
def test_few_blocks_and_chunks_say_what_all_would(
    kind: str, micro_batch: int, precision: str, off_policy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    plain = depth._walked

    def walked(networks: Any, number: int, walk: Any) -> Any:
        ran.append(number)
        return plain(networks, number, walk)

    monkeypatch.setattr(depth, "_walked", walked)
    few = phases(KINDS[kind](tmp_path), micro_batch, precision, off_policy)
    assert set(ran) == {3, 4}
    monkeypatch.setattr(depth, "DEPTHS", (DEEP, DEEP))
    monkeypatch.setattr(Ledger, "_turn", lambda self, starts: iter(starts))
    assert few == phases(KINDS[kind](tmp_path), micro_batch, precision, off_policy)


class Made(nn.Module):
    def forward(self, numbers: int) -> torch.Tensor:
        return torch.empty(numbers)


def test_the_peak_stands_elsewhere_in_a_deeper_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three or four blocks it stands behind the second pass, of eight at its end: what the first made goes then."""
    network = nn.Sequential(nn.ModuleList([Made() for _ in range(DEEP)]))

    def walk(ledger: Ledger) -> Any:
        ledger.begin()
        for numbers in (30, 10):
            made = [block(numbers) for block in network[0]]
        made.append(torch.empty(200))
        return peaks_of("peak", ledger)

    with dry():
        few = highest(counted([network], walk), "peak")
        monkeypatch.setattr(depth, "DEPTHS", (DEEP, DEEP))
        assert few == highest(counted([network], walk), "peak") == 4 * (30 * DEEP + 10 * DEEP)


def test_blocks_that_differ_all_run() -> None:
    network = nn.Sequential(nn.ModuleList([nn.Linear(2, 2) for _ in range(DEEP)]))
    ran: list[int] = []

    def walk(ledger: Ledger) -> Any:
        ran.append(len(network[0]))
        return {}

    counted([network], walk)
    network[0][4].in_features = 3
    counted([network], walk)
    assert ran == [3, 4, DEEP]
