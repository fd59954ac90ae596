"""Mistakes in the recipes of the neighbours: exit code 2 and one message, before any weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cfg_distill.audio import Waveform, write_audio
from cfg_distill.cli import main
from cfg_distill.generators import CausalLM

REWARD = "model.losses.diversity.init_args.reward"


def part(name: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"cfg_distill.{name}", "init_args": init_args}


CODES = json.dumps(part("sampling.Codes", values=3, condition="prefix", words=["z:4", "z:2", "z:1"]))


def compared(kind: str, reference: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return part(f"rewards.{kind}", embedder=part("tunes.embedder.Tunes"), reference=reference, **settings)


@pytest.mark.parametrize(
    ("overlay", "reward", "words", "said"),
    [
        pytest.param(
            "mmd", compared("Witness", part("references.Texts", path="none.jsonl")), [],
            f"Key `{REWARD}.init_args.reference.init_args.path`: ", id="no file",
        ),
        pytest.param(
            "mmd", compared("Witness", part("references.Sounds", folder="{here}/empty")), [],
            f"Key `{REWARD}.init_args.reference.init_args.folder`: expected a folder with sound files", id="no sounds",
        ),
        pytest.param(
            "mmd", compared("Witness", part("references.Sounds", folder="{here}", seconds=5.0)), [],
            f"Key `{REWARD}.init_args.reference.init_args.seconds`: expected sound files of at least 5 s", id="short files",
        ),
        pytest.param(
            "mmd", None, [f"--{REWARD}.init_args.reference.init_args.tokens=40"],
            f"Key `{REWARD}.init_args.reference.init_args.tokens`: expected at least 80", id="short outputs",
        ),
        pytest.param(
            "mmd", compared("Witness", part("references.Texts", path="{here}/texts.jsonl", prompt_field="asked")), [],
            f"Key `{REWARD}.init_args.reference.init_args.prompt_field`: expected at least 1 output", id="lonely prompt",
        ),
        pytest.param(
            "pseudo_density", compared("Density", part("references.Texts", path="{here}/texts.jsonl"), k=3), [],
            f"Key `{REWARD}.init_args.k`: expected at least 4 reference outputs for 3 neighbours, but there are 3", id="k + 1",
        ),
        pytest.param(
            "volta", None, ["--model.sampling.samples=6"],
            "Key `model.conditioner.init_args.values`: expected a divisor of `model.sampling.samples`, 6", id="codes",
        ),
        pytest.param(
            "volta", None, [f"--{REWARD}.init_args.values=3"],
            f"Key `model.conditioner` for `{REWARD}`: expected 3 labels, one per code, but got 4", id="labels out of range",
        ),
        pytest.param(
            "avgout_label", None, [f"--model.conditioner={CODES}", "--model.sampling.samples=6"],
            f"Key `model.conditioner` for `{REWARD}`: expected 3 labels, one per target, but got codes", id="codes as labels",
        ),
        pytest.param(
            "few_shot", None, ["--model.opening.tokens=80"],
            "Key `model.opening.tokens`: expected fewer than the 80 of `model.sampling.max_new_tokens`", id="long opening",
        ),
        pytest.param(
            "coinseg", None, [f"--{REWARD}.init_args.mode=multiplicative"],
            f"Key `{REWARD}.init_args.rewards.contrast`: expected values above 0 when multiplicative", id="logarithm as factor",
        ),
    ],
)  # fmt: skip
def test_a_fit_refuses(
    overlay: str,
    reward: dict[str, Any] | None,
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(CausalLM, "load", lambda self: pytest.fail("weights were loaded"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts.jsonl").write_text('{"text": "A B", "asked": "a jig"}\n' * 3)
    write_audio(tmp_path / "clip.wav", Waveform(torch.full((1, 8000), 0.1), 8000))
    given = ["fit", "--config", "recipes/tunes/diversity.yaml", "--config", f"recipes/tunes/neighbours/{overlay}.yaml"]
    if reward is not None:
        content = json.dumps({"model": {"losses": {"diversity": {"init_args": {"reward": reward}}}}})
        (tmp_path / "wrong.yaml").write_text(content.replace("{here}", str(tmp_path)))
        given += ["--config", str(tmp_path / "wrong.yaml")]
    assert main([*given, *words]) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split()) and shown.count("Key `") == 1, shown
