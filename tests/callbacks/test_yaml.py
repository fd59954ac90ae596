"""All callbacks and the plugin from one recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny import tiny_folder
from tiny_fits import PROMPTS

from cfg_distill.cli.fit import run

CALLBACKS = """
- class_path: lightning.pytorch.callbacks.ModelCheckpoint
  init_args: {save_last: true, every_n_train_steps: 1}
- class_path: cfg_distill.callbacks.ExactResume
- class_path: cfg_distill.callbacks.StudentEMA
  init_args: {decay: 0.9}
- class_path: cfg_distill.callbacks.DiversityLogging
  init_args:
    metrics:
      diversity: {class_path: cfg_distill.metrics.DistinctN}
      length: {class_path: cfg_distill.metrics.Length}
- class_path: cfg_distill.callbacks.SampleLogging
  init_args: {num_prompts: 1, audio: cfg_distill.tunes.rendering.audio}
- class_path: cfg_distill.callbacks.Throughput
- class_path: cfg_distill.callbacks.BetaCalibration
  init_args: {loss: forward_kl, reference: kl, num_steps: 1}
- class_path: cfg_distill.callbacks.CheckpointMerging
  init_args: {method: liti, use: ema, weights: [0.5], metrics: {length: {class_path: cfg_distill.metrics.Length}}}
"""


# jsonargparse warns of how Lightning uses it.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_callback_by_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path / "model")
    (tmp_path / "train.txt").write_text("\n".join(PROMPTS[:4]))
    (tmp_path / "validation.txt").write_text("\n".join(PROMPTS[4:]))
    recipe = {
        "model": {
            "generator": {"class_path": "cfg_distill.generators.CausalLM", "init_args": {"path": folder}},
            "sampling": {"samples": 2, "max_new_tokens": 6},
            "losses": {
                "kl": {"class_path": "cfg_distill.losses.ReverseKL"},
                "forward_kl": {"class_path": "cfg_distill.losses.ForwardKL"},
            },
        },
        "data": {"train": str(tmp_path / "train.txt"), "validation": str(tmp_path / "validation.txt"), "batch_size": 2},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "plugins": [{"class_path": "cfg_distill.callbacks.AtomicCheckpointIO"}],
            "callbacks": yaml.safe_load(CALLBACKS),
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command line sets it; this test shall not leave it behind
    # These prompts speak of no tune, so that a sample has no sound: said, and no more.
    with pytest.warns(UserWarning, match="could not be turned into sound"):
        run("fit", ["--config", "recipe.yaml"])
    (last,) = tmp_path.glob("runs/**/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    assert {"ExactResume", "StudentEMA", "DiversityLogging", "BetaCalibration"} <= checkpoint["callbacks"].keys()
    (merged,) = tmp_path.glob("runs/**/merged/0.5/model.safetensors")
    assert merged.stat().st_size > 0
