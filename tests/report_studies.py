"""Small finished studies, made by the steps of a real one in this process: no fit, two systems, real samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made_study import read_study
from tiny import tiny_folder
from tiny_musicgen import tiny_musicgen

from cfg_distill.files import write_text
from cfg_distill.study.ledger import Ledger
from cfg_distill.study.record import record_of
from cfg_distill.study.steps import plan

STUDY = """
out: out
baselines:
  base: {{model: {model}}}
  guidance 2: {{model: {model}, guidance: 2.0}}
  base T 0.8: {{model: {model}, temperature: 0.8}}
evaluation:
  prompts: report.txt
  samples: 2
  max_new_tokens: {tokens}
  batch_size: 4
  written: 3
  written_samples: 2
  metrics:
    length: {{class_path: cfg_distill.metrics.Length}}
  headline: {{quality: length, diversity: length}}
"""
TUNES = ["A lively Irish jig in G major", "An Irish reel in D", "A slow air in E minor", "A polka in A", "A waltz in G"]
TEXTS = ["w5", "w6 w7", "w8 w9", "w1 w2 w3", "w4", "w3 w9"]


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def finished_study(place: Path, model: str, prompts: list[str], tokens: int) -> Path:
    """The folder of a study whose steps were all done but for the front; its paths are relative to ``place``."""
    with standing_in(place):
        Path("report.txt").write_text("\n".join(prompts))
        Path("study.yaml").write_text(STUDY.format(model=model, tokens=tokens))
        study = read_study("study.yaml")
        write_text("out/study.json", json.dumps(record_of(study)))
        ledger = Ledger(Path("out"))
        for step in plan(study, Path("out")):
            if step.kind == "evaluate":
                ledger.begin(step)
                step.work.run(lambda done, total: None)
                ledger.finish(step, 1.0, 1.0)
    return place / "out"


def tune_study(place: Path) -> Path:
    """Of the embedded text-to-music model: its samples are sound."""
    return finished_study(place, '"tunes:base"', TUNES, tokens=40)


def text_study(place: Path) -> Path:
    """Of a tiny language model."""
    tiny_folder(place / "base")
    return finished_study(place, "base", TEXTS, tokens=8)


def sound_study(place: Path) -> Path:
    """Of a tiny MusicGen, whose samples are waveforms."""
    tiny_musicgen(place / "base", positions=128)
    return finished_study(place, "base", ["80s synth pop", "calm jazz piano", "loud rock"], tokens=16)
