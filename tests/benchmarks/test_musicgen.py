"""MusicGen small at real size, random weights: `make bench`. One process a measurement; see musicgen_step.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_step_that_trains_all_weights() -> None:
    result = measured()
    assert result["tokens a second"]["rollout"] > result["tokens a second"]["generate with guidance"]
    assert 0.85 < result["computed GB"] / result["peak GB"] < 1.15


def test_a_step_that_trains_an_adapter() -> None:
    result = measured("--rank", "16", "--no-rollouts")
    assert 0.85 < result["computed GB"] / result["peak GB"] < 1.15
