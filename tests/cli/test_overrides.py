"""Overrides of the command line put into a recipe as LightningCLI does."""

from __future__ import annotations

from typing import Any

import pytest

from cfg_distill.recipe.files import merge
from cfg_distill.recipe.overrides import Override, overrides_of, put

RECIPE: dict[str, Any] = {
    "model": {"losses": {"kl": {"class_path": "m.KL", "init_args": {"weight": 1}}}},
    "trainer": {"callbacks": [{"class_path": "m.A"}, {"class_path": "m.B", "init_args": {"x": 1}}]},
}


def after(word: str) -> dict[str, Any]:
    return put(RECIPE, overrides_of([word])[0])


def test_words() -> None:
    words = [
        "--config",
        "a.yaml",
        "--trainer.devices",
        "2",
        "--data.train=t.txt",
        "--trainer.callbacks+=m.C",
        "--a={b: 1}",
    ]
    assert overrides_of(words) == [
        Override(("trainer", "devices"), "2"),
        Override(("data", "train"), "t.txt"),
        Override(("trainer", "callbacks"), "m.C", append=True),
        Override(("a",), {"b": 1}),
    ]


@pytest.mark.parametrize("key", ["model.losses.kl.init_args.weight", "model.losses.kl.weight"])
def test_one_number_of_a_loss(key: str) -> None:
    assert after(f"--{key}=9")["model"]["losses"]["kl"] == {"class_path": "m.KL", "init_args": {"weight": "9"}}
    assert RECIPE["model"]["losses"]["kl"]["init_args"] == {"weight": 1}


@pytest.mark.parametrize("word", ["--model.losses.kl=m.JS", "--model.losses.kl.class_path=m.JS"])
def test_another_class_drops_the_arguments(word: str) -> None:
    assert after(word)["model"]["losses"]["kl"] == {"class_path": "m.JS"}


def test_lists_are_appended_to_and_their_last_entry_reached() -> None:
    assert after("--trainer.callbacks+=m.C")["trainer"]["callbacks"][2] == "m.C"
    assert after("--trainer.callbacks.x=2")["trainer"]["callbacks"][1]["init_args"] == {"x": "2"}


def test_new_keys() -> None:
    assert after("--data.train=t.txt")["data"] == {"train": "t.txt"}


def test_later_files_win_and_another_class_drops_the_arguments() -> None:
    update = {"model": {"losses": {"kl": {"init_args": {"weight": 9}}}}, "trainer": {"callbacks": []}}
    assert merge(RECIPE, update) == {
        "model": {"losses": {"kl": {"class_path": "m.KL", "init_args": {"weight": 9}}}},
        "trainer": {"callbacks": []},
    }
    short = {"model": {"losses": {"kl": {"weight": 9}}}}
    assert merge(RECIPE, short)["model"] == merge(RECIPE, update)["model"]
    other = {"model": {"losses": {"kl": {"class_path": "m.JS"}}}}
    assert merge(RECIPE, other)["model"]["losses"]["kl"] == {"class_path": "m.JS"}
