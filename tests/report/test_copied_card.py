"""The card of a model that ``choose --out`` copies: it has no numbers that the copied weights do not have."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_study import write_study
from tiny import tiny_folder

from cfg_distill.evaluation import System
from cfg_distill.folders.card import write_card
from cfg_distill.folders.history import History
from cfg_distill.report import choose_study


@pytest.fixture
def study(folder: Path) -> Path:
    """A finished study in ``study``, where the test stands."""
    return write_study(folder / "study", kind="")


def card_of_shipped(study: Path, *changes: str, **settings: object) -> tuple[str, str]:
    """What choose says, and the card of its copy, where the study sampled its choice with some settings."""
    system = replace(System.read(study / "systems" / "half.json"), **settings)  # type: ignore[arg-type]
    system.save(study / "systems" / "half.json")
    for made in [study / "merges" / "half", *(study / "merges" / "half" / each for each in changes)]:
        write_card(Path(tiny_folder(made)), "half", History("my-base"))
    shutil.rmtree("shipped", ignore_errors=True)
    return str(choose_study("study", out="shipped")), Path("shipped/README.md").read_text()


def test_the_card_of_a_plain_choice_has_its_numbers(study: Path) -> None:
    said, card = card_of_shipped(study)
    assert "| quality | quality | 0.690 |" in card and said.splitlines()[-2].endswith("to shipped.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": "Be bold: {prompt}", "dial": 0.5}, "with prompt 'Be bold: {prompt}', dial 0.5, which its weights"),
        ({"top_p": 0.9}, "with top_p 0.9, which its weights"),
        ({"conditioner": {"class_path": "x.Y"}}, "with conditioner {'class_path': 'x.Y'}, which its weights"),
    ],
)
def test_a_card_has_no_numbers_that_the_weights_alone_do_not_have(study: Path, settings: dict, said: str) -> None:
    told, card = card_of_shipped(study, **settings)
    assert said in told and "So its card has no numbers." in told and "## Measured" not in card


def test_of_several_training_seeds_the_card_is_of_the_copied_run(study: Path) -> None:
    pooled = System.read(study / "systems" / "half.json")
    runs = {metric: [values, values, values] for metric, values in pooled.values.items()}
    seeds = {"training_seeds": [4, 5, 6], "values": runs, "model": "elsewhere/merges/half/seed 4"}
    told, card = card_of_shipped(study, "seed 4", **seeds)
    assert "means over 3 training seeds" in told and "cannot be read, so its card has none" in told
    assert "## Measured" not in card
    run = replace(pooled, training_seeds=[4], values=pooled.values | {"quality": [[0.123] * 12] * 2})
    run.save(study / "systems" / "half" / "seed 4.json")
    told, card = card_of_shipped(study, "seed 4", **seeds)
    assert "means over 3 training seeds" in told and "its card has the numbers of that run alone" in told
    assert "| quality | quality | 0.123 |" in card and "0.690" not in card
