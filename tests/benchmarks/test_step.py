"""A whole training step: against TRL, against the same without guidance, and against its own matrix products."""

from typing import Any

import pytest
from measure import LENGTH, PROMPTS, SAMPLES, Row, interleaved, report
from steps import MICRO_BATCH
from worker import Worker

pytestmark = pytest.mark.bench


def test_step() -> None:
    with Worker("steps:ours") as own, Worker("steps:trl") as peer:
        measure({"ours": own, "trl": peer})


def measure(workers: dict[str, Worker]) -> None:
    last: dict[tuple[str, str], dict[str, Any]] = {}

    def tell(name: str, word: str) -> float:
        last[name, word] = workers[name].tell(word)
        return last[name, word]["seconds"]

    tell("ours", "record")
    seconds = interleaved(
        {
            "guided": lambda: tell("ours", "guided"),
            "trl": lambda: tell("trl", "guided"),
            "plain": lambda: tell("ours", "plain"),
            "floor": lambda: tell("ours", "floor"),
        }
    )
    memory = {name: last[name, "guided"]["peak"] / 1e9 for name in workers}

    def row(what: str, name: str, against: str, bar: float, aim: float, details: str = "") -> Row:
        ratio = seconds["guided"] / seconds[name]
        return Row(what, against, ratio, bar, aim, True, f"{seconds['guided']:.1f} s : {seconds[name]:.1f} s{details}")

    speed = f", {last['ours', 'floor']['flops'] / seconds['guided'] / 1e9:.0f} GFLOP/s in the step"
    peaks = f"{memory['ours']:.2f} GB : {memory['trl']:.2f} GB"
    rows = [
        row("step, guided teacher", "trl", "TRL + guided teacher", 0.45, 0.35),
        Row("peak memory of it", "TRL + guided teacher", memory["ours"] / memory["trl"], 0.8, 0.7, True, peaks),
        row("step, guided teacher", "plain", "the same without guidance", 1.20, 1.10),
        row("step, guided teacher", "floor", "its matrix products alone", 1.7, 1.35, speed),
    ]
    batch = f"{len(PROMPTS)} prompts x {SAMPLES} samples x {LENGTH} tokens, micro-batches of {MICRO_BATCH}"
    report("step", rows, f"Whole training step of SmolLM2-135M: {batch}")
