"""The recipes of MusicGen, with tiny local models in the place of those of the hub: they check, and one of them runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_audio import tiny_clap, tiny_hubert
from tiny_musicgen import tiny_musicgen
from transformers import MusicgenForConditionalGeneration

from cfg_distill.cli import main
from cfg_distill.data import read_prompts
from cfg_distill.data.reading import normalised
from cfg_distill.folders import RECIPES
from cfg_distill.recipe.command_line import start

NAMES = sorted(path.stem for path in (RECIPES / "musicgen").glob("*.yaml") if path.stem != "metrics")
KINDS = {"stereo": "stereo", "melody": "melody"}
LONG = 800  # positions: 10 s and what a melody takes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hub names -> local folders."""
    root = tmp_path_factory.mktemp("hub")
    local = {
        "laion/larger_clap_music": tiny_clap(root / "clap"),
        "MIT/ast-finetuned-audioset-10-10-0.4593": tiny_hubert(root / "hubert"),
    }
    for name in ("small", "medium", "large", "stereo-small", "melody"):
        kind = KINDS.get(name.partition("-")[0], "mono")
        local[f"facebook/musicgen-{name}"] = tiny_musicgen(root / name, kind, positions=LONG)
    return local


def localised(name: str, models: dict[str, str], folder: Path) -> Path:
    """The recipe with local folders for hub names."""
    text = (RECIPES / "musicgen" / f"{name}.yaml").read_text(encoding="utf-8")
    for hub, local in models.items():
        text = text.replace(f"path: {hub}", f"path: {local}")
    assert "facebook/" not in text.replace("cfg-distill", "") and "laion/" not in text
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_there_is_one_for_every_kind():
    assert NAMES == ["large", "large_full", "medium", "melody", "small", "small_lora", "stereo"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_no_problems(name, models, folder):
    file = localised(name, models, folder)
    start("fit", ["--config", str(file)], check_only=True)


def test_prompts_do_not_overlap():
    prompts = {
        name: [normalised(p) for p in read_prompts(RECIPES / "musicgen" / "prompts" / f"{name}.txt")]
        for name in ("train", "validation", "report")
    }
    everything = [prompt for each in prompts.values() for prompt in each]
    assert len(set(everything)) == len(everything) == 320


def test_the_small_recipe_trains_plays_exports_and_generates(models, folder, capsys):
    """From the recipe to a folder of transformers and a WAV file, by the command line alone."""
    file = localised("small", models, folder)
    short = {
        "trainer.max_steps": 2, "trainer.val_check_interval": 2, "trainer.accelerator": "cpu", "trainer.precision": "32-true",
        "trainer.enable_progress_bar": "false", "trainer.log_every_n_steps": 1, "model.sampling.max_new_tokens": 20,
        "model.measure_gradients_every": 1, "data.batch_size": 2, "data.validation_batch_size": 4,
        "trainer.default_root_dir": str(folder / "run"), "trainer.limit_val_batches": 1,
    }  # fmt: skip
    assert main(["fit", "--config", str(file), *(f"--{key}={value}" for key, value in short.items())]) in (None, 0)
    (checkpoint,) = (folder / "run").rglob("last.ckpt")
    (events,) = (folder / "run").rglob("events.out*")
    seen = EventAccumulator(str(events.parent)).Reload()
    scalars = seen.Tags()["scalars"]
    for name in ("train/kl", "train/diversity", "gradient_ratio/diversity", "val/kl_per_token"):
        assert name in scalars, name
    assert any("second_diversity" in name for name in scalars) and any("silence" in name for name in scalars)
    assert len(seen.Tags()["audio"]) == 8

    assert main(["export", "--checkpoint", str(checkpoint), "--out", str(folder / "out")]) in (None, 0)
    settings = MusicgenForConditionalGeneration.from_pretrained(folder / "out").generation_config
    assert settings.guidance_scale == 1.0
    words = ["--prompt", "80s synth pop", "--seconds", "0.5", "--samples", "2", "--out", str(folder / "wav")]
    assert main(["generate", "--model", str(folder / "out"), *words]) in (None, 0)
    for wav in (folder / "wav").glob("*.wav"):
        assert soundfile.info(wav).frames == 1600
    assert len(list((folder / "wav").glob("*.wav"))) == 2


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("large", "small_lora"))]
)
def test_a_recipe_trains_in_its_own_precision(name, models, folder):
    """All weights in float32, and an adapter of a bfloat16 base, both under bf16-mixed, with rewards, averages and metrics."""
    file = localised(name, models, folder)
    short = {
        "trainer.max_steps": 2, "trainer.val_check_interval": 1, "trainer.accelerator": "cpu", "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": "false", "trainer.log_every_n_steps": 1, "model.sampling.max_new_tokens": 6,
        "model.measure_gradients_every": 1, "model.micro_batch": 4, "data.batch_size": 2, "data.validation_batch_size": 2,
        "model.losses.diversity.init_args.warmup_steps": 0, "trainer.default_root_dir": str(folder / "run"),
    }  # fmt: skip
    assert main(["fit", "--config", str(file), *(f"--{key}={value}" for key, value in short.items())]) in (None, 0)
    (events,) = (folder / "run").rglob("events.out*")
    seen = EventAccumulator(str(events.parent)).Reload()
    for scalar in ("train/loss", "train/diversity", "gradient_norm/kl", "gradient_norm/diversity", "val/adherence"):
        values = [event.value for event in seen.Scalars(scalar)]
        assert len(values) == 2 and np.isfinite(values).all(), scalar
    (checkpoint,) = (folder / "run").rglob("last.ckpt")
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    trained = {tensor.dtype for key, tensor in state.items() if key.startswith("student.")}
    assert trained == {torch.float32}  # what an optimiser moves
    assert any("lora" in key for key in state) == (name != "small")
