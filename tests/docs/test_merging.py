"""A second file of the pages changes what it names, and keeps the rest: in ``--print_config``, and in a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fenced import SHORT_FIT, blocks

from cfg_distill.cli import main

CALLBACKS = {"checkpoint", "resume", "ema", "diversity", "samples", "throughput"}
# recipe, file of the page, the losses of both together
CASES = [
    ("quality", "my_losses.yaml", {"kl": "ReverseKL", "entropy": "EntropyBonus"}),
    ("quality", "my_rewards.yaml", {"kl": "ReverseKL", "diversity": "PolicyGradient"}),
    ("diversity", "my_rewards.yaml", {"kl": "ReverseKL", "diversity": "PolicyGradient"}),
    ("diversity", "weight.yaml", {"kl": "ReverseKL", "diversity": "PolicyGradient"}),
]


def write_files(folder: Path) -> None:
    for block in blocks("docs/extending.md"):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    (folder / "weight.yaml").write_text("model: {losses: {diversity: {init_args: {weight: 6.0}}}}\n")


def losses_of(config: str) -> dict[str, str]:
    losses = yaml.safe_load(config)["model"]["losses"]
    return {name: loss["class_path"].rpartition(".")[2] for name, loss in losses.items()}


@pytest.mark.parametrize(("recipe", "file", "expected"), CASES)
def test_the_losses_that_are_printed(
    desk: Path, capsys: pytest.CaptureFixture[str], recipe: str, file: str, expected: dict[str, str]
) -> None:
    write_files(desk)
    with pytest.raises(SystemExit) as ended:
        main(["fit", f"--config=recipes/tunes/{recipe}.yaml", "--config", file, "--print_config"])
    assert ended.value.code == 0
    assert losses_of(capsys.readouterr().out) == expected


@pytest.mark.parametrize(("recipe", "file", "expected"), [CASES[0], CASES[3]])
def test_the_losses_that_train(desk: Path, recipe: str, file: str, expected: dict[str, str]) -> None:
    import torch

    write_files(desk)
    assert main(["fit", f"--config=recipes/tunes/{recipe}.yaml", "--config", file, *SHORT_FIT]) == 0
    run = desk / "runs" / recipe / "version_0"
    assert losses_of((run / "config.yaml").read_text()) == expected
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights = {name: float(state[f"losses.{name}.weight"]) for name in losses_of((run / "config.yaml").read_text())}
    assert {name.split(".")[1] for name in state if name.startswith("losses.")} == expected.keys()
    assert weights["kl"] == 1 and weights.get("diversity", 6) == 6


def test_a_file_changes_one_callback(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "ema.yaml").write_text("trainer: {callbacks: {ema: {init_args: {decay: 0.5}}, samples: null}}\n")
    words = [
        "fit",
        "--config=recipes/tunes/quality.yaml",
        "--config=ema.yaml",
        "--trainer.callbacks.throughput.window=7",
    ]
    with pytest.raises(SystemExit):
        main([*words, "--print_config"])
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert callbacks.keys() == CALLBACKS - {"samples"}
    assert callbacks["ema"]["init_args"]["decay"] == 0.5 and callbacks["ema"]["init_args"]["warmup"] is True
    assert callbacks["throughput"]["init_args"]["window"] == 7
