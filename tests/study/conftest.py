"""A tiny study on disk: a tiny model, prompts, a recipe, and a study file that a test may change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_folder

RECIPE = """
seed_everything: 1
model:
  generator: {class_path: cfg_distill.generators.CausalLM, init_args: {path: base}}
  guidance: {scale: 2.0}
  sampling: {samples: 3, max_new_tokens: 6}
  losses: {kl: {class_path: cfg_distill.losses.ReverseKL}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-2}}
data: {train: train.txt, batch_size: 2}
trainer:
  max_steps: 12
  max_epochs: -1
  accelerator: cpu
  devices: 1
  logger: false
  callbacks:
    - class_path: cfg_distill.callbacks.ExactResume
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_last: true, every_n_train_steps: 2, save_top_k: 0}
"""

STUDY = """
out: out
fits:
  quality: {config: fit.yaml}
  diversity: {config: fit.yaml, start: quality, overrides: {model.guidance.scale: 3.0}}
merges:
  half: {models: [quality, diversity], weights: [0.5, 0.5]}
baselines:
  base: {model: base}
  base T 0.8: {model: base, temperature: 0.8}
  guidance 2: {model: base, guidance: 2.0}
evaluation:
  prompts: report.txt
  samples: 3
  seeds: [0, 1]
  max_new_tokens: 6
  metrics:
    words: {class_path: mine.Words}
    distinct: {class_path: cfg_distill.metrics.DistinctN}
    length: {class_path: cfg_distill.metrics.Length}
  headline: {quality: words, diversity: distinct}
claims: {start: base, guidance: guidance 2, quality: quality, diversity: diversity, merge: half, margin: 0.02}
"""

METRIC = '''
from cfg_distill.metrics import TextMetric


class Words(TextMetric):
    """Words a sample, as a share of the longest."""

    axis = "quality"

    def score_group(self, texts):
        return sum(len(text.split()) for text in texts) / len(texts) / 6
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study, which the test stands in; ``base`` is no model yet."""
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text(RECIPE)
    Path("study.yaml").write_text(STUDY)
    Path("mine.py").write_text(METRIC)
    Path("train.txt").write_text("w0 w1\nw2\nw3 w4\n")
    Path("report.txt").write_text("w5\nw6 w7\nw8 w9\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_text("not yet")
    return tmp_path


@pytest.fixture
def real(place: Path) -> Path:
    """The same with a real tiny model."""
    tiny_folder(place / "base")
    return place


@pytest.fixture
def change(place: Path) -> Callable[[dict[str, Any]], Path]:
    """Sets dotted keys of the study file; None takes a key out."""

    def apply(changes: dict[str, Any]) -> Path:
        study = yaml.safe_load(Path("study.yaml").read_text())
        for dotted, value in changes.items():
            *parents, last = dotted.split("/")
            inner = study
            for parent in parents:
                inner = inner.setdefault(parent, {})
            if value is None:
                inner.pop(last)
            else:
                inner[last] = value
        Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        return Path("study.yaml")

    return apply
