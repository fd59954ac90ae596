"""How long somebody waits for the first answer of `cfg-distill demo`, with the shipped model: the bar is 5 s on two cores."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from made_study import write_study
from measure import SHARED, use_threads

from cfg_distill.folders import source
from cfg_distill.report.demo import Pieces
from cfg_distill.report.playground import Playground

pytestmark = pytest.mark.bench
PROMPT = "a lively Irish jig in D major"
BAR = 5.0
"""Seconds of a clock; on a shared machine, seconds of the processor."""


def test_the_first_answer(tmp_path: Path) -> None:
    """From a press of Draw to the samples of two models as HTML, as long as those of the quick start."""
    use_threads()
    headline = {"quality": "quality", "diversity": "diversity", "independent": "bigram"}
    evaluation = {"prompts": "report.txt", "metrics": {}, "headline": headline, "max_new_tokens": 128}
    baselines = {"base": {"model": "tunes:base"}, "guidance 2": {"model": "tunes:base", "guidance": 2.0}}
    study = write_study(tmp_path / "study", kind="", baselines=baselines, evaluation=evaluation)
    for place in ("students/quality", "students/diversity", "merges/half"):
        (study / place).parent.mkdir(exist_ok=True)
        (study / place).symlink_to(source("tunes:base") or "")
    pieces = Pieces(Playground(study))
    began = _now()
    pieces.playground.load()
    loaded = _now()
    print(f"\nloading both models: {loaded[0] - began[0]:.1f} s, {loaded[1] - began[1]:.1f} s of the processor")
    for what, setting, seed in (
        ("first answer", 0.5, 0),
        ("a setting that is merged first", 0.3, 0),
        ("the same", 0.3, 1),
    ):
        before = _now()
        assert 'class="system"' in pieces.samples(PROMPT, setting, seed)
        wall, cpu = (now - then for now, then in zip(_now(), before, strict=True))
        print(f"{what}: {wall:.1f} s, {cpu:.1f} s of the processor")
        assert (cpu if SHARED else wall) < BAR


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
