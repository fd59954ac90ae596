"""A fit of a model of sound from one YAML file: CLAP rewards it, metrics hear it, TensorBoard plays it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_audio import tiny_clap, tiny_hubert
from tiny_dia import tiny_dia

from cfg_distill.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:`max_length` is ignored when `padding`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning"),
]


def embedder(kind: str, path: str) -> dict[str, Any]:
    return {"class_path": f"cfg_distill.embedders.{kind}", "init_args": {"path": path}}


def metric(kind: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"cfg_distill.metrics.{kind}", "init_args": settings}


@pytest.fixture
def recipe(folder: Path) -> Path:
    tiny_dia(folder / "dia")
    tiny_clap(folder / "clap")
    tiny_hubert(folder / "hubert")
    for name, prompts in (("train", "[S1] Hi.\n[S2] No."), ("validation", "[S1] Well?\n[S2] Yes!")):
        Path(f"{name}.txt").write_text(prompts)
    clap = embedder("CLAP", "clap")
    reward = {"class_path": "cfg_distill.rewards.PairwiseDiversity", "init_args": {"embedder": clap}}
    metrics = {
        "adherence": metric("CLAPAdherence", embedder=clap),
        "diversity": metric("PairwiseCosineDiversity", embedder=clap),
        "second": metric("PairwiseCosineDiversity", embedder=embedder("AudioEmbedder", "hubert")),
        "silence": metric("SilenceRate"),
    }
    content = {
        "model": {
            "generator": {"class_path": "cfg_distill.generators.Dia", "init_args": {"path": "dia"}},
            "guidance": {"scale": 3.0},
            "sampling": {"samples": 3, "max_new_tokens": 8},
            "losses": {
                "kl": {"class_path": "cfg_distill.losses.ReverseKL"},
                "diversity": {
                    "class_path": "cfg_distill.losses.PolicyGradient",
                    "init_args": {"weight": 0.1, "reward": reward},
                },
            },
        },
        "data": {"train": "train.txt", "validation": "validation.txt", "batch_size": 2},
        "trainer": {
            "max_steps": 2, "val_check_interval": 1, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}},
                {
                    "class_path": "cfg_distill.callbacks.DiversityLogging",
                    "init_args": {"metrics": metrics, "collapse_below": 0.0},
                },
                {"class_path": "cfg_distill.callbacks.SampleLogging", "init_args": {"num_prompts": 1}},
            ],
        },
    }  # fmt: skip
    Path("sound.yaml").write_text(yaml.safe_dump(content))
    return Path("sound.yaml")


def test_a_fit_of_sound(recipe: Path) -> None:
    assert main(["fit", "--config", str(recipe)]) == 0
    (run,) = Path("runs/sound").iterdir()
    events = EventAccumulator(str(run)).Reload()
    scalars = {
        "train/kl_per_token",
        "train/diversity_reward",
        "val/adherence",
        "val/diversity",
        "val/second",
        "val/silence",
    }
    assert scalars <= set(events.Tags()["scalars"])
    first, second = events.Tags()["audio"]
    assert re.fullmatch(r"samples/0-[\w-]+/0", first) and re.fullmatch(r"samples/0-[\w-]+/1", second)
    played = events.Audio(first)
    assert {sound.sample_rate for sound in played} == {8000.0}
    assert all(sound.encoded_audio_string[:4] == b"RIFF" for sound in played)
    # Frozen encoders and the codec come from where they came from.
    words = ["export", "--checkpoint", str(run / "checkpoints" / "last.ckpt"), "--out", "student"]
    assert main(words) == 0
    assert (Path("student") / "generation_config.json").is_file()


def test_all_problems_of_a_recipe_of_sound(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["model"]["generator"]["init_args"]["path"] = "hubert"
    reward = content["model"]["losses"]["diversity"]["init_args"]["reward"]["init_args"]
    reward["embedder"]["init_args"]["path"] = "dia"
    content["trainer"]["callbacks"][1]["init_args"]["metrics"]["silence"]["init_args"] = {"level": 6.0}
    recipe.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "5 problems" in message and "Traceback" not in message
    assert "expected a Dia (model_type dia), but `hubert` is of model_type hubert" in message
    # The reward's, and those of two metrics: one node of the file.
    assert message.count("expected a CLAP model, but `dia` is none: its config.json says `dia`") == 3
    level = "trainer.callbacks[1].init_args.metrics.silence.init_args.level"
    assert f"Key `{level}`: expected decibels below 0, but got 6.0" in message
    assert not Path("runs").exists()
